"""Charts: quantities by epoch, as the numbers that SVG pictures are made of."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from guard.training.record import Epoch

WIDE, HALF = (1000, 250), (448, 130)
"""Width and height of a plot, about in pixels of the page."""
_DOTTED = 40  # of more epochs no dot each
_LABEL = 60  # what the words above the kept epoch take on each side of it

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One quantity by epoch, broken where an epoch has none."""

    kind: str
    """What its style is named by."""
    path: str
    dots: tuple[Point, ...]
    kept: Point | None
    """Where it stands at the epoch that was kept."""


@dataclass(frozen=True)
class Band:
    """The strip of one epoch, and what is said where the pointer rests on it."""

    left: float
    middle: float
    epoch: Epoch
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines over the epochs. The origin is the upper left corner of the plot."""

    caption: str
    width: int
    height: int
    lines: tuple[Line, ...]
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]
    bands: tuple[Band, ...]
    band: float
    """The width of a band."""
    kept: Band | None
    anchor: str
    """How the words above the kept epoch stand to it, so that they stay in the picture: start, middle or end."""


def chart(
    caption: str,
    epochs: Sequence[Epoch],
    lines: Mapping[str, Callable[[Epoch], float | None]],
    said: Callable[[Epoch], str],
    *,
    kept: int | None,
    planned: int = 0,
    size: tuple[int, int] = HALF,
    percent: bool = False,
) -> Chart:
    """A chart of what each line reads off an epoch, of which there is at least one.

    `said`: what is told of an epoch. `kept`: the epoch to mark. `planned`: for how many epochs there is room, where
    more are to come. `percent`: the axis goes from 0 to 100 %; elsewhere it has 0 on it and reaches around all values.
    """
    width, height = size
    values = {kind: [_drawable(read(epoch)) for epoch in epochs] for kind, read in lines.items()}
    marks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] if percent else _scale([v for line in values.values() for v in line])
    bottom, top = marks[0], marks[-1]
    count = max(planned, *(epoch.epoch for epoch in epochs))

    def x(epoch: float) -> float:
        return round((epoch - 0.5) / count * width, 1)

    def y(value: float) -> float:
        return round((top - value) / (top - bottom) * height, 1)

    bands = tuple(Band(x(epoch.epoch - 0.5), x(epoch.epoch), epoch, said(epoch)) for epoch in epochs)
    drawn = []
    for kind, line in values.items():
        points = [None if v is None else (band.middle, y(v)) for band, v in zip(bands, line, strict=True)]
        marked = [point for band, point in zip(bands, points, strict=True) if band.epoch.epoch == kept]
        drawn.append(Line(kind, _path(points), _dots(points), marked[0] if marked else None))
    held = next((band for band in bands if band.epoch.epoch == kept), None)
    middle = held.middle if held else 0.0
    return Chart(
        caption=caption,
        width=width,
        height=height,
        lines=tuple(drawn),
        rows=tuple(Tick(y(mark), f"{100 * mark:g}" if percent else f"{mark:g}") for mark in marks),
        columns=tuple(Tick(x(epoch), f"{epoch:,}") for epoch in _numbered(count)),
        bands=bands,
        band=round(width / count, 2),
        kept=held,
        anchor="start" if middle < _LABEL else "end" if middle > width - _LABEL else "middle",
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` or below to `high` or above: 1, 2 or 5 times a power of ten apart.

    At most `most` steps fit between `low` and `high`, which differ.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= most + 1e-9)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.9g}") for number in range(first, last + 1)]


def _scale(values: Sequence[float | None]) -> list[float]:
    """The marks of an axis that has 0 on it."""
    known = [0.0, *(value for value in values if value is not None)]
    low, high = min(known), max(known)
    return ticks(low, high if high > low else low + 1, 5)


def _drawable(value: float | None) -> float | None:
    """What can be drawn of it: a loss that became infinite cannot."""
    return value if value is not None and math.isfinite(value) else None


def _numbered(epochs: int) -> list[int]:
    """The epochs that an axis names: all of a few, of many the first and multiples of a round number."""
    step = max(1, round(ticks(0, epochs, 12)[1]))
    return [epoch for epoch in range(1, epochs + 1) if epoch == 1 or epoch % step == 0]


def _path(points: Sequence[Point | None]) -> str:
    moves = [
        f"{'L' if before else 'M'}{point[0]:g} {point[1]:g}"
        for before, point in zip([None, *points], points, strict=False)
        if point
    ]
    return "".join(moves)


def _dots(points: Sequence[Point | None]) -> tuple[Point, ...]:
    """Every point of a few; of many those alone that no line reaches."""
    around = zip([None, *points], points, [*points[1:], None], strict=False)
    return tuple(
        point for before, point, after in around if point and (len(points) <= _DOTTED or not (before or after))
    )
