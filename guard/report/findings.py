"""Findings: what a report's numbers say, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from guard.evaluation.result import Results, Row, WorstCase
from guard.report.tables import SCORED, Setting, Table, tables, unique
from guard.report.text import interval, joined, percent
from guard.threat import amount


def findings(report: Results) -> list[str]:
    """One sentence for each data set, threat model, goal and seed: what stands strongest under the worst case."""
    games: dict[tuple[str, str, str, int], list[WorstCase]] = {}
    for row in report.worst_case:
        games.setdefault((row.dataset, f"{row.norm} {amount(row.epsilon)}", row.goal, row.seed), []).append(row)
    names = []
    for dataset, threat, goal, seed in games:
        said = [dataset] * (len({game[0] for game in games}) > 1) + [threat] + [goal] * (goal != "untargeted")
        names.append(", ".join(said + [f"seed {seed}"] * (len({game[3] for game in games}) > 1)))
    return [_finding(rows, name) for rows, name in zip(games.values(), names, strict=True)]


def _finding(rows: Sequence[WorstCase], game: str) -> str:
    knowledge = "adaptive" if any(row.knowledge == "adaptive" for row in rows) else rows[0].knowledge
    rows = [row for row in rows if row.knowledge == knowledge]
    game += "" if knowledge == "adaptive" else f", {knowledge} attacks only"
    several = len({row.model for row in rows}) > 1
    unjudged = unique(_who(row, several) for row in rows if row.status not in SCORED)
    open_end = f" Not judged, as attacks are missing: {joined(unjudged)}." if unjudged else ""
    judged = [row for row in rows if row.status in SCORED]
    weakest = {(row.model, row.defense): row for row in sorted(judged, key=_share, reverse=True)}
    judged = [row for row in judged if weakest[row.model, row.defense] is row]  # of several sources the worst counts
    if not judged:
        return f"Nothing could be judged under {game}.{open_end}"
    best = max(judged, key=_share)
    keeps = f"keeps {percent(best.robust_accuracy)} % {interval(best)} of {best.images:,} images"
    keeps += f" under {_attacks(best)} ({game})"
    if best.defense != "none":
        bare = [row for row in judged if (row.model, row.defense) == (best.model, "none")]
        text = f"Strongest defense: {_who(best, several)} {keeps}"
        text += f"; undefended {percent(bare[0].robust_accuracy)} %" if bare else ""
    elif any(row.defense != "none" for row in judged):
        text = f"No defense does better than none: the undefended {best.model} {keeps}"
    else:
        text = f"Undefended, {best.model} {keeps}; clean {percent(best.clean_accuracy)} %"
    low = (best.robust_accuracy_interval or (1.0, 1.0))[0]
    near = unique(_who(row, several) for row in judged if row is not best and _share(row) >= low)
    text += f"; within its interval: {joined(near)}" if near else ""
    return f"{text}.{open_end}" + (f" Suspect: {best.reason}." if best.status == "SUSPECT" else "")


def _share(row: Row | None) -> float:
    return (row and row.robust_accuracy) or 0.0


def _who(row: Row, several: bool) -> str:
    return f"{row.defense} on {row.model}" if several else row.defense


def _attacks(row: WorstCase) -> str:
    labels = list(row.broken_first)
    return f"the worst of {len(labels)} attacks" if len(labels) != 1 else labels[0]


@dataclass(frozen=True)
class Overstatement:
    """How much better a defense looks to an attacker who does not know it."""

    setting: Setting
    defense: str
    adaptive: float
    """Worst-case robust accuracy."""
    oblivious: float
    attacks: tuple[tuple[str, float], ...]
    """The difference of each attack that was run both ways, oblivious less adaptive."""

    @property
    def difference(self) -> float:
        """Of the worst cases, oblivious less adaptive."""
        return self.oblivious - self.adaptive


def overstatements(report: Results) -> list[Overstatement]:
    """Each defense that was met by both an adaptive and an oblivious attacker, with a figure for both."""
    everything = tables(report)
    pairs = [
        (one, other)
        for one in everything
        for other in everything
        if one.setting == other.setting and (one.knowledge, other.knowledge) == ("adaptive", "oblivious")
    ]
    return [found for one, other in pairs for found in _compared(one, other)]


def _compared(adaptive: Table, oblivious: Table) -> list[Overstatement]:
    lines = {line.defense: line for line in oblivious.lines}
    found = []
    for line in adaptive.lines:
        other = lines.get(line.defense)
        if other is None or not (_scored(line.worst) and _scored(other.worst)):
            continue
        both = [label for label in line.cells if _scored(line.cells[label]) and _scored(other.cells.get(label))]
        differences = tuple((label, _share(other.cells[label]) - _share(line.cells[label])) for label in both)
        worst = _share(line.worst), _share(other.worst)
        found.append(Overstatement(adaptive.setting, line.defense, worst[0], worst[1], differences))
    return found


def _scored(row: Row | None) -> bool:
    return row is not None and row.status in SCORED
