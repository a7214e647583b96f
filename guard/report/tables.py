"""The tables that every face of a report shows: one for each game, defenses by attacks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from guard.evaluation.result import Cell, Results, Row, WorstCase
from guard.report.learned_words import lessons, projected
from guard.report.text import distance, joined
from guard.threat import amount

SCORED = ("VALID", "SUSPECT")
"""Statuses of cells whose robust accuracy counts."""


class Setting(NamedTuple):
    """What is attacked and under which rules; figures of two settings are never mixed."""

    dataset: str
    model: str
    norm: str
    epsilon: float
    goal: str
    seed: int

    @classmethod
    def of(cls, row: Row) -> "Setting":
        """The setting of a cell or a worst case."""
        return cls(row.dataset, row.model, row.norm, row.epsilon, row.goal, row.seed)

    @property
    def threat(self) -> str:
        """The threat model as papers write it: linf 8/255."""
        return f"{self.norm} {amount(self.epsilon)}"

    def __str__(self) -> str:
        return f"{self.model} on {self.dataset}, {self.threat}, {self.goal}, seed {self.seed}"


@dataclass(frozen=True)
class Line:
    """A defense: its row of a table."""

    defense: str
    cells: dict[str, Cell]
    """By the attack's label."""
    worst: WorstCase | None

    @property
    def clean(self) -> float | None:
        """Clean accuracy, where any attack could be scored."""
        rows: list[Row] = [*self.cells.values(), *([self.worst] if self.worst else [])]
        return next((row.clean_accuracy for row in rows if row.clean_accuracy is not None), None)


@dataclass(frozen=True)
class Table:
    """Defenses by attacks, for one setting and one knowledge."""

    setting: Setting
    knowledge: str
    source: str | None
    attacks: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    """Distances, what attacks learned, why figures are missing or marked, and what the worst case spans."""

    @property
    def attacker(self) -> str:
        """The knowledge, with the source model where there is one."""
        return f"{self.knowledge} from {self.source}" if self.source else self.knowledge

    def heading(self, label: str) -> str:
        """What stands over the column of an attack: its label, and that its points are projected where it learned
        without a bound."""
        return f"{label} (projected)" if label in _projected(self.lines) else label

    @property
    def images(self) -> int:
        """How many images were evaluated."""
        return max(cell.images for line in self.lines for cell in line.cells.values())


def tables(report: Results) -> list[Table]:
    """One table for each setting and knowledge, those of a setting side by side, in the order of the cells."""
    groups: dict[tuple[Setting, str, str | None], list[Cell]] = {}
    for cell in report.cells:
        groups.setdefault((Setting.of(cell), cell.knowledge, cell.source), []).append(cell)
    settings = unique(setting for setting, _, _ in groups)
    ordered = sorted(groups, key=lambda place: settings.index(place[0]))
    return [_table(report, *place, groups[place]) for place in ordered]


def unique(items: Iterable) -> list:  # type: ignore[type-arg]
    """Each once, in the order of their first appearance."""
    return list(dict.fromkeys(items))


def _table(report: Results, setting: Setting, knowledge: str, source: str | None, cells: Sequence[Cell]) -> Table:
    rows = [row for row in report.worst_case if (*_place(row), row.source) == (*setting[:4], knowledge, source)]
    lines = []
    for defense in unique(cell.defense for cell in cells):
        mine = [row for row in rows if row.defense == defense]
        exact = [row for row in mine if Setting.of(row) == setting]
        worst = next(iter(exact or mine), None)  # one row may span goals and seeds
        lines.append(Line(defense, {cell.label: cell for cell in cells if cell.defense == defense}, worst))
    attacks = tuple(unique(cell.label for cell in cells))
    applies = [line for line in lines if any(cell.status != "NOT_APPLICABLE" for cell in line.cells.values())]
    left = [line for line in lines if applies and line not in applies]
    lines = applies or lines
    notes = (
        *_measured(report),
        *_from_itself(setting, source),
        *_limits(report),
        *_draws(lines),
        *_estimates(lines),
        *_distances(lines, setting),
        *_without_bound(lines, setting),
        *lessons(cell for row in lines for cell in row.cells.values()),
        *_reasons(lines),
        *_left_out(left),
        *_span(report, setting, knowledge, rows),
    )
    return Table(setting, knowledge, source, attacks, tuple(lines), notes)


def _place(row: Row) -> tuple[str, str, str, float, str]:
    return (row.dataset, row.model, row.norm, row.epsilon, row.knowledge)


def _limits(report: Results) -> list[str]:
    """What every attack was held to beside the threat."""
    queries = report.config.get("max_queries")
    return [] if queries is None else [f"No attack could ask about an image more than {queries:,} times (max_queries)."]


def _from_itself(setting: Setting, source: str | None) -> list[str]:
    """That a model is its own source."""
    if source != setting.model:
        return []
    return [
        f"The source is {source} itself: where a defense leaves its weights as they are, and on none, nothing is "
        f"transferred, and the attacker knows them."
    ]


def _measured(report: Results) -> list[str]:
    """What epsilon is measured on, where the data set decides the images' size."""
    dataset, shape = report.config.get("dataset"), report.run.get("image_shape")
    if not isinstance(dataset, dict) or "crop" not in dataset or shape is None:
        return []
    steps = [f"{key} {dataset[key]}" for key in ("resize", "crop") if dataset[key]]
    after = f", after {joined(steps)}" if steps else ""
    return [f"Epsilon is measured on images of {' x '.join(map(str, shape))}{after}."]


def _estimates(lines: Sequence[Line]) -> list[str]:
    """How many images each attack that is an estimate left undecided."""
    found: dict[str, list[str]] = {}
    for line in lines:
        for label, cell in line.cells.items():
            if cell.undecided is not None:
                found.setdefault(label, []).append(f"{cell.undecided} of {cell.images:,} images on {line.defense}")
    return [f"{label} is an estimate. It left undecided {joined(places)}." for label, places in found.items()]


def _distances(lines: Sequence[Line], setting: Setting) -> list[str]:
    """The median distance of each minimum-distance attack."""
    found: dict[str, list[str]] = {}
    for line in lines:
        for label, cell in line.cells.items():
            if cell.curve:
                found.setdefault(label, []).append(f"{distance(cell.median_distance)} on {line.defense}")
    return [f"Median {setting.norm} distance of {label}: {joined(places)}." for label, places in found.items()]


def _projected(lines: Sequence[Line]) -> list[str]:
    """The attacks that learned without a bound."""
    return unique(label for line in lines for label, cell in line.cells.items() if projected(cell))


def _without_bound(lines: Sequence[Line], setting: Setting) -> list[str]:
    """What the figures of attacks that learned without a bound mean."""
    return [
        f"{label} (projected) learned without a bound: what lies outside {setting.threat} counts by its projection, "
        f"which it did not learn to make. Its distance says how far it goes."
        for label in _projected(lines)
    ]


def _reasons(lines: Sequence[Line]) -> list[str]:
    """Each reason once, with the cells it holds for."""
    held: dict[tuple[str, str], dict[str, list[str]]] = {}
    for line in lines:
        rows: list[tuple[str, Row]] = list(line.cells.items())
        if line.worst:
            rows.append(("worst case", line.worst))
        for label, row in rows:
            if row.status != "VALID":
                held.setdefault((row.status, row.reason), {}).setdefault(line.defense, []).append(label)
    notes = []
    for (status, reason), where in held.items():
        places = "; ".join(f"{joined(labels)} on {defense}" for defense, labels in where.items())
        notes.append(f"{status.replace('_', ' ')}: {places}: {reason}")
    return notes


def _draws(lines: Sequence[Line]) -> list[str]:
    """Which defenses draw, and over how many draws they were attacked and scored."""
    drawn = {line.defense: cell for line in lines for cell in line.cells.values() if cell.scoring_draws > 1}
    if not drawn:
        return []
    eot, draws = (max(getattr(cell, name) for cell in drawn.values()) for name in ("eot", "scoring_draws"))
    means = f" Gradients are means of {eot} draws." if eot > 1 else ""
    names = joined(list(drawn))
    return [f"Randomized: {names}. Each image counts by the share of {draws} fresh draws on which it stands.{means}"]


def _left_out(lines: Sequence[Line]) -> list[str]:
    """The defenses that no attack of a table applies to, by reason."""
    reasons = unique(cell.reason for line in lines for cell in line.cells.values())
    where = {
        reason: [line.defense for line in lines if reason in {cell.reason for cell in line.cells.values()}]
        for reason in reasons
    }
    return [f"Left out: {joined(defenses)}: {reason}" for reason, defenses in where.items()]


def _span(report: Results, setting: Setting, knowledge: str, rows: Sequence[WorstCase]) -> list[str]:
    """What the worst case covers beyond the attacks of its table."""
    here = [cell for cell in report.cells if _place(cell)[:4] == setting[:4]]
    covered = []
    if not {Setting.of(cell) for cell in here} <= {Setting.of(row) for row in rows}:
        goals, seeds = unique(cell.goal for cell in here), unique(str(cell.seed) for cell in here)
        covered += [f"the goals {joined(goals)}"] * (len(goals) > 1) + [f"the seeds {joined(seeds)}"] * (len(seeds) > 1)
    others = unique(cell.knowledge for cell in here if cell.knowledge != knowledge and cell.status in SCORED)
    if knowledge == "adaptive" and others:
        covered.append(f"the {joined(others)} points, which an adaptive attacker could have taken")
    return [f"The worst case spans {joined(covered)}."] if rows and covered else []
