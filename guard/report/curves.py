"""Curves: robust accuracy by epsilon, drawn from the distances of a minimum-distance attack."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from guard.evaluation.result import Cell, Results
from guard.report.text import percent
from guard.threat import amount

WIDTH, HEIGHT = 300, 72
"""Of a picture, in its own units."""


@dataclass(frozen=True)
class Mark:
    """An epsilon of the run and the robust accuracy of its cell."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One minimum-distance attack on one defense, whatever the epsilon."""

    cell: Cell
    """The first of its cells."""
    game: str
    """The setting without its epsilon."""
    unfound: float
    """Share of all images that are classified correctly and that no point was found for."""
    points: str
    """Of the line, as SVG writes them."""
    marks: tuple[Mark, ...]
    end: str
    """The epsilon at the right edge."""


def curves(report: Results) -> list[Curve]:
    """Each curve once, in the order of the cells."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in report.cells:
        if cell.curve:
            place = (_game(cell), cell.defense, cell.knowledge, cell.source, cell.label)
            groups.setdefault(place, []).append(cell)
    return [_curve(cells) for cells in groups.values()]


def _game(cell: Cell) -> str:
    return f"{cell.model} on {cell.dataset}, {cell.norm}, {cell.goal}, seed {cell.seed}"


def _curve(cells: Sequence[Cell]) -> Curve:
    first = cells[0]
    bounded = [(epsilon, share) for epsilon, share in first.curve if math.isfinite(epsilon)]
    end = bounded[-1][0] or 1.0

    def place(epsilon: float, share: float) -> tuple[float, float]:
        return round(min(epsilon / end, 1) * WIDTH, 1), round((1 - share) * HEIGHT, 1)

    marks = []
    for cell in cells:
        if cell.robust_accuracy is not None and math.isfinite(cell.epsilon):
            text = f"epsilon {amount(cell.epsilon)}: robust {percent(cell.robust_accuracy)} %"
            marks.append(Mark(*place(cell.epsilon, cell.robust_accuracy), text))
    points = " ".join(f"{x:g},{y:g}" for x, y in (place(*pair) for pair in bounded))
    return Curve(first, _game(first), first.curve[-1][1], points, tuple(marks), amount(end))
