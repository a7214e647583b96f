"""A claim's chart as the numbers that an SVG picture is made of."""

from dataclasses import dataclass
from math import isfinite

from guard.claims.verdict import Chart
from guard.report.charts import Tick, ticks

WIDTH, HEIGHT = 1000, 220
"""Of the plot, about in pixels of the page."""


@dataclass(frozen=True)
class Drawn:
    """Lines over named places, at equal distances. The origin is the upper left corner of the plot."""

    title: str
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]
    lines: tuple[tuple[str, str, tuple[tuple[float, float, str], ...]], ...]
    """Name, points as SVG writes them, and each point with what is said of it."""


def drawn(chart: Chart) -> Drawn:
    """The picture of a chart, which has at least one place; what is infinite is left out."""
    known = [value for line in chart.lines.values() for value in line if isfinite(value)]
    marks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] if chart.share else ticks(0, max(known, default=0) or 1, 5)
    step = WIDTH / len(chart.places)

    def at(number: int, value: float) -> tuple[float, float]:
        return round((number + 0.5) * step, 1), round((1 - value / marks[-1]) * HEIGHT, 1)

    def number(value: float) -> str:
        return f"{100 * value:.3g}" if chart.share else f"{value:.3g}"

    lines = []
    for name, values in chart.lines.items():
        points = [
            (*at(place, value), f"{chart.places[place]}: {number(value)}, {name}")
            for place, value in enumerate(values)
            if isfinite(value)
        ]
        lines.append((name, " ".join(f"{x:g},{y:g}" for x, y, _ in points), tuple(points)))
    return Drawn(
        title=chart.title,
        rows=tuple(Tick(at(0, mark)[1], number(mark)) for mark in marks),
        columns=tuple(Tick(at(place, 0)[0], name) for place, name in enumerate(chart.places)),
        lines=tuple(lines),
    )
