"""The colours of the heat map: one sequential scale of monotone lightness, readable without telling red from green."""

STEPS = 20
"""Steps between 0 and 100 %."""


def level(share: float) -> int:
    """The step of a share in [0, 1]."""
    return round(share * STEPS)


def scale(dark: bool) -> list[tuple[str, str]]:
    """Background and text colour of each step: more robust is further from the page, on light and on dark paper."""
    from matplotlib import colormaps

    shades = colormaps["YlGnBu_r" if dark else "YlGnBu"]
    return [_pair(shades(step / STEPS)) for step in range(STEPS + 1)]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours '#rrggbb' (WCAG 2.2), 1 to 21."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _pair(shade: tuple[float, float, float, float]) -> tuple[str, str]:
    background = "#" + "".join(f"{round(255 * value):02x}" for value in shade[:3])
    return background, max(("#101418", "#ffffff"), key=lambda text: contrast(background, text))


def _luminance(colour: str) -> float:
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
