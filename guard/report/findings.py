"""Findings: what a report's numbers say, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from guard.evaluation.result import Report, Row, WorstCase
from guard.report.tables import SCORED, Setting, Table, tables, unique
from guard.report.text import AT_MOST, interval, joined, percent


def findings(report: Report) -> list[str]:
    """One sentence for each data set and threat model: what stands strongest, under the strongest knowledge run."""
    everything = tables(report)
    places = unique((t.setting.dataset, t.setting.threat) for t in everything)
    found = []
    for dataset, threat in places:
        here = [t for t in everything if (t.setting.dataset, t.setting.threat) == (dataset, threat)]
        strongest = [t for t in here if t.knowledge == "adaptive"] or here
        found.append(_finding(strongest, dataset if len({place[0] for place in places}) > 1 else "", threat))
    return found


def _finding(here: Sequence[Table], dataset: str, threat: str) -> str:
    several = len({table.setting.model for table in here}) > 1
    rows: dict[str, WorstCase] = {}
    for table in here:
        rows |= {line.worst.key: line.worst for line in table.lines if line.worst}
    judged = [row for row in rows.values() if row.status in SCORED and row.robust_accuracy is not None]
    open_rows = [row for row in rows.values() if row.status not in SCORED]
    game = f"{threat} on {dataset}" if dataset else threat
    unjudged = f" Not judged: {joined(unique(_who(row, several) for row in open_rows))} (incomplete)." if open_rows else ""
    if not judged:
        return f"Nothing could be judged under {game}.{unjudged}"
    best = max(judged, key=_share)
    keeps = f"keeps {percent(best.robust_accuracy)} % {interval(best)} of {best.images:,} images under {_attacks(here, best)}"
    keeps += f" ({game}{_aim(best, rows.values())})"
    bare = next((row for row in judged if row.defense == "none" and Setting.of(row) == Setting.of(best)), None)
    if best.defense != "none":
        text = f"Strongest defense: {_who(best, several)} {keeps}"
        text += f"; undefended {percent(bare.robust_accuracy)} %" if bare else ""
    elif any(row.defense != "none" for row in judged):
        text = f"No defense does better than none: {_who(best, several)} {keeps}"
    else:
        text = f"Without a defense {best.model} {keeps}; clean {percent(best.clean_accuracy)} %"
    near = [row for row in judged if row is not best and _share(row) >= (best.robust_accuracy_interval or (1, 1))[0]]
    if near:
        text += f"; within its interval: {joined(unique(_who(row, several) for row in near))}"
    doubt = f" Suspect: {best.reason}." if best.status == "SUSPECT" else ""
    return f"{text}.{doubt}{unjudged}"
