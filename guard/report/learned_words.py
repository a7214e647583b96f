"""What attacks learned, in words: once for each time that one learned, however many cells attack with it."""

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import NamedTuple

from guard.evaluation.result import Cell, Fit, Row
from guard.report.text import joined, many, seconds
from guard.threat import amount
from guard.training.record import Epoch

_FEW = 4  # lines about like fits


class Figure(NamedTuple):
    """A figure of what was learned, as it stood when the weights that attack were kept."""

    name: str
    value: float
    epoch: int
    """The last one, up to the kept one, in which it was seen."""


def fits(cells: Iterable[Cell]) -> list[tuple[Fit, list[Cell]]]:
    """Each different fit with the cells that attack with it, in their order."""
    found: dict[str, tuple[Fit, list[Cell]]] = {}
    for cell in cells:
        if cell.fit is not None:
            found.setdefault(cell.fit.model_dump_json(), (cell.fit, []))[1].append(cell)
    return list(found.values())


def labels(cells: Iterable[Cell]) -> str:
    """The labels of cells, each once."""
    return joined(list(dict.fromkeys(cell.label for cell in cells)))


def lessons(cells: Iterable[Cell]) -> list[str]:
    """What was learned, a line for each time; one line for the like of several networks of more than a few."""
    groups: dict[tuple[object, ...], list[tuple[Fit, list[Cell]]]] = {}
    for fit, attacking in fits(cells):
        alike = labels(attacking), fit.dataset, fit.images, len(fit.epochs), fit.forwards, fit.shared, aim(fit)
        groups.setdefault(alike, []).append((fit, attacking))
    return [line for group in groups.values() for line in _told(group)]


def _told(group: Sequence[tuple[Fit, list[Cell]]]) -> list[str]:
    if len(group) <= _FEW:
        return [lesson(fit, attacking) for fit, attacking in group]
    took = sorted(fit.seconds for fit, _ in group)
    return [lesson(*group[0], f"each of {len(group)} networks", f"{seconds(took[0])} to {seconds(took[-1])}")]


def lesson(fit: Fit, cells: Sequence[Cell], against: str = "", took: str = "") -> str:
    """Who learned against and on what, and what that took, in a line; and what one must know to trust the figures.

    `against`, `took`: in place of this fit's network and time.
    """
    where = f"against {against or fit.model} on {many(fit.images, 'training image')} of {fit.dataset}"
    asked = f"{fit.forwards:,} {'query' if fit.forwards == 1 else 'queries'}"
    said = [
        f"{labels(cells)} learned {where}, {many(len(fit.epochs), 'epoch')}, {took or seconds(fit.seconds)}, {asked}"
    ]
    said += [f"it learned for {aim(fit)}"] if any(_other(fit, cell) for cell in cells) else []
    said += [shared(fit)] if fit.shared else []
    return f"{'; '.join(said)}."


def _other(fit: Fit, cell: Cell) -> bool:
    """Whether it learned for another game than it plays."""
    return fit.goal != cell.goal or (fit.epsilon is not None and (fit.norm, fit.epsilon) != (cell.norm, cell.epsilon))


def shared(fit: Fit) -> str:
    """How many evaluated images it learned on; empty where none."""
    if not fit.shared:
        return ""
    one = fit.shared == 1
    return f"{many(fit.shared, 'evaluated image')} {'is' if one else 'are'} among those that it learned on"


def aim(fit: Fit) -> str:
    """The goal, the threat and the seed that it learned for."""
    bound = "without a bound" if fit.epsilon is None else amount(fit.epsilon)
    return f"{fit.goal}, {fit.norm} {bound}, seed {fit.seed}"


def names(fit: Fit) -> list[str]:
    """The figures that some epoch has."""
    return list(dict.fromkeys(name for epoch in fit.epochs for name in epoch.figures))


def figures(fit: Fit) -> list[Figure]:
    """The last values up to the kept epoch; nothing of a figure that was seen only later."""
    until = [epoch for epoch in fit.epochs if fit.kept is None or epoch.epoch <= fit.kept]
    seen = {name: Figure(name, value, epoch.epoch) for epoch in until for name, value in epoch.figures.items()}
    return [seen[name] for name in names(fit) if name in seen]


def told(epoch: Epoch) -> str:
    """All of an epoch in a line, and its events in lines of their own."""
    parts = [f"{name} {value:.3g}" for name, value in epoch.figures.items()]
    parts += [f"loss {epoch.loss:.3g}", seconds(epoch.seconds)]
    return "\n".join([f"epoch {epoch.epoch}: {', '.join(parts)}", *epoch.events])


def projected(row: Row) -> bool:
    """Whether the attack learned without a bound, so that what lies outside the ball counts by its projection."""
    learned = row.fit if isinstance(row, Cell) else None
    return learned is not None and learned.epsilon is None and isfinite(row.epsilon)
