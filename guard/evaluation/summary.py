"""Summaries: from what became of each image to the figures of cells and worst cases."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.evaluation.answer import SELECTION
from guard.evaluation.outcome import PART, WIDTH
from guard.evaluation.result import Candidate, Cell, PartRow, Status, WorstCase
from guard.evaluation.store import Arrays
from guard.statistics import interval

Flags = NDArray[np.bool_]
Shares = NDArray[np.bool_] | NDArray[np.float64]
"""Of each image whether, or on which share of a randomized victim's draws, something holds."""

_QUANTILES = 21  # points of a curve
_ROUNDED = 1 + 1e-5  # a distance this much beyond an epsilon is in the ball


@dataclass(frozen=True)
class Scored:
    """A cell, and per image what its best trial did and whether the victim was right before; None where invalid."""

    cell: Cell
    outcome: Arrays | None = None
    clean: Shares | None = None


def joined(shards: Sequence[Arrays]) -> Arrays:
    """The shards of one trial end to end; seconds added up. A part that a shard lacks did nothing there."""
    names = dict.fromkeys(name for shard in shards for name in shard if name != "seconds")
    arrays = {}
    for name in names:
        arrays[name] = np.concatenate([shard[name] if name in shard else _idle(shard) for shard in shards])
    return arrays | {"seconds": np.array(sum(float(shard["seconds"]) for shard in shards))}


def _idle(shard: Arrays) -> NDArray[np.int64]:
    return np.zeros((len(shard["correct"]), WIDTH), np.int64)


def best(outcomes: Sequence[Arrays]) -> Arrays:
    """Per image the outcome of the attacker's best trial: one that reached the goal, else one that broke the image,
    else the first; costs added up, and the least of the nearest distances.

    Of a victim that draws the best trial is found on selection draws: where it reaches the goal, then errs, most often.
    """
    if len(outcomes) == 1:
        return outcomes[0]
    erring = 1 - np.stack([_chosen(o, "correct") for o in outcomes])
    choice = (2 * np.stack([_chosen(o, "reached") for o in outcomes]) + erring).argmax(0)
    rows = np.arange(len(choice))
    arrays = {name: np.stack([o[name] for o in outcomes])[choice, rows] for name in outcomes[0] if _per_image(name)}
    for name in ("correct", "correct_8bit"):
        worst = np.stack([_chosen(o, name) for o in outcomes]).argmin(0)
        for known in (name, name + SELECTION):
            if known in outcomes[0]:
                arrays[known] = np.stack([o[known] for o in outcomes])[worst, rows]
    arrays["undecided"] = np.logical_and.reduce([o["undecided"] for o in outcomes]) & (arrays["correct"] > 0.5)
    for cost in ("forwards", "backwards"):
        arrays[cost] = np.sum([o[cost] for o in outcomes], axis=0)
    if all("nearest" in o for o in outcomes):
        arrays["nearest"] = np.minimum.reduce([o["nearest"] for o in outcomes])
    kept = min(len(o["adversarial"]) for o in outcomes)
    arrays["adversarial"] = np.stack([o["adversarial"][:kept] for o in outcomes])[choice[:kept], rows[:kept]]
    arrays["seconds"] = np.array(sum(float(o["seconds"]) for o in outcomes))
    return arrays


def _chosen(outcome: Arrays, name: str) -> NDArray[np.float64]:
    """The shares that an attacker chooses by."""
    return np.asarray(outcome.get(name + SELECTION, outcome[name]), np.float64)


def standing(outcome: Arrays, clean: Shares) -> Shares:
    """How far each image stands under an attack; a clean error is one, too."""
    if "correct" + SELECTION in outcome:  # the attacker has chosen between the clean image and its own
        return np.asarray(outcome["correct"], np.float64)
    return np.asarray(outcome["correct"] & clean)


def _per_image(name: str) -> bool:
    return name in ("reached", "reached" + SELECTION, "distance", "low_frequency_energy", "target", "prediction")


def candidate(name: str, outcome: Arrays, clean: Shares) -> Candidate:
    """One trial of a cell."""
    return Candidate(
        name=name,
        images=len(outcome["correct"]),
        robust_accuracy=float(standing(outcome, clean).mean()),
        forwards_per_image=float(outcome["forwards"].mean()),
        backwards_per_image=float(outcome["backwards"].mean()),
        seconds=float(outcome["seconds"]),
    )


def figures(outcome: Arrays, clean: Shares, labels: NDArray[np.int64], on_grid: bool) -> dict[str, Any]:
    """The figures of a cell, from its outcome and which images are classified correctly clean."""
    stand = standing(outcome, clean)
    rounded = standing(outcome | {"correct": outcome["correct_8bit"]}, clean)
    targeted, counted = _counted(outcome, clean, labels)
    success = np.asarray(outcome["reached"] if targeted else 1 - 1.0 * outcome["correct"], np.float64)[counted]
    distance, energy = outcome["distance"], outcome["low_frequency_energy"]
    moved = ~np.isnan(energy)
    return {
        "images": len(clean),
        "clean_accuracy": float(clean.mean()),
        "robust_accuracy": float(stand.mean()),
        "robust_accuracy_interval": interval(stand),
        "robust_accuracy_8bit": float(rounded.mean()) if on_grid else None,
        "attack_success_rate": float(success.mean()) if counted.any() else None,
        "attack_success_denominator": int(counted.sum()),
        "max_distance": float(distance.max()),
        "median_distance": float(np.median(distance[counted][success > 0.5])) if (success > 0.5).any() else None,
        "low_frequency_energy": float(energy[moved].mean()) if moved.any() else None,
        "forwards_per_image": float(outcome["forwards"].mean()),
        "backwards_per_image": float(outcome["backwards"].mean()),
        "seconds": float(outcome["seconds"]),
    }


def minimal(outcome: Arrays, clean: Shares, labels: NDArray[np.int64], epsilons: Sequence[float]) -> dict[str, Any]:
    """The figures that only a minimum-distance attack has; none for another. The curve holds `epsilons`."""
    if "nearest" not in outcome:
        return {}
    _, counted = _counted(outcome, clean, labels)
    distances = np.sort(outcome["nearest"][counted])
    found = distances[np.isfinite(distances)]
    quantiles = np.quantile(found, np.linspace(0, 1, _QUANTILES), method="nearest") if len(found) else found

    def robust(epsilon: float) -> float:
        return float(((clean > 0.5).sum() - (found <= epsilon * _ROUNDED).sum()) / len(clean))

    shown = sorted({0.0, *quantiles.tolist(), *epsilons})
    return {
        "median_distance": float(np.median(distances)) if len(distances) else None,
        "curve": tuple((epsilon, robust(epsilon)) for epsilon in shown),
    }


def _counted(outcome: Arrays, clean: Shares, labels: NDArray[np.int64]) -> tuple[bool, Flags]:
    """Whether the goal is targeted, and which images success is counted among: those that are mostly right."""
    targeted, right = bool((outcome["target"] >= 0).any()), clean > 0.5
    return targeted, right & (outcome["target"] != labels) if targeted else right


def parts(outcome: Arrays, clean: Shares) -> tuple[PartRow, ...]:
    """The members of a cascade; none where the attack is no cascade."""
    return tuple(
        _part(name.removeprefix(PART), rows[clean > 0.5]) for name, rows in outcome.items() if name.startswith(PART)
    )


def _part(name: str, rows: NDArray[np.int64]) -> PartRow:
    forwards, backwards, broke, tried = rows.sum(0).tolist()
    return PartRow(
        name=name,
        images=tried,
        broke=broke,
        forwards_per_image=forwards / max(tried, 1),
        backwards_per_image=backwards / max(tried, 1),
    )


def worst_cases(scored: Sequence[Scored], labels: NDArray[np.int64], on_grid: bool) -> list[WorstCase]:
    """Per image the worst over attacks, seeds and goals, for each model, defense, threat, knowledge and source.

    The adaptive attacker could have taken any point of the others, so that row spans all knowledge.
    """
    groups: dict[tuple[str, str, str, float, str, str | None], list[Scored]] = {}
    for item in scored:
        cell = item.cell
        if cell.status != "NOT_APPLICABLE":
            place = (cell.model, cell.defense, cell.norm, cell.epsilon, cell.knowledge, cell.source)
            groups.setdefault(place, []).append(item)
    rows = []
    for (*game, knowledge, source), members in groups.items():
        if knowledge == "adaptive":
            members = [item for key, group in groups.items() if list(key[:4]) == game for item in group]
        rows.append(_worst(members, knowledge, source, labels, on_grid))
    return rows


def _worst(
    members: Sequence[Scored], knowledge: str, source: str | None, labels: NDArray[np.int64], on_grid: bool
) -> WorstCase:
    cells = [item.cell for item in members]
    status, reason = _status(cells)
    shared: dict[str, Any] = {
        "key": f"{cells[0].key}-worst-{knowledge}",
        "source": source,
        "dataset": cells[0].dataset,
        "model": cells[0].model,
        "defense": cells[0].defense,
        "goal": " and ".join(_unique(cell.goal for cell in cells)),
        "norm": cells[0].norm,
        "epsilon": cells[0].epsilon,
        "knowledge": knowledge,
        "seed": cells[0].seed,
        "images": cells[0].images,
        "status": status,
        "reason": reason,
    }
    outcomes: list[Arrays] = []
    broken: dict[str, Flags] = {}
    right: Shares = np.zeros(len(labels), bool)
    for item in members:
        if item.outcome is not None and item.clean is not None:
            right = item.clean
            outcomes.append(item.outcome)
            before = broken.get(item.cell.label, np.zeros(len(labels), bool))
            broken[item.cell.label] = before | ((right > 0.5) & (item.outcome["correct"] <= 0.5))
    if not outcomes:
        return WorstCase(**shared)
    times, seen = np.sum(list(broken.values()), axis=0), np.zeros(len(right), bool)
    broken_first = {}
    for label, flags in broken.items():
        broken_first[label] = int((flags & ~seen).sum())
        seen |= flags
    any_error = best(outcomes) | {"target": np.full(len(right), -1)}
    return WorstCase(
        **shared | figures(any_error, right, labels, on_grid),
        broken_first=broken_first,
        broken_only={label: int((flags & (times == 1)).sum()) for label, flags in broken.items()},
    )


def _status(cells: Sequence[Cell]) -> tuple[Status, str]:
    """Of a worst case over these cells."""
    if missing := [cell for cell in cells if cell.status in ("INVALID", "INCOMPLETE")]:
        names = ", ".join(_unique(_told_apart(cell, cells) for cell in missing))
        return "INCOMPLETE", f"without {names}: an upper bound only"
    suspect = [cell for cell in cells if cell.status == "SUSPECT"]
    return ("SUSPECT", suspect[0].reason) if suspect else ("VALID", "")


def _told_apart(cell: Cell, cells: Sequence[Cell]) -> str:
    """The label of a cell, and what else differs among the cells of that label: pgd (oblivious, seed 1)."""
    twins = [other for other in cells if other.label == cell.label]
    parts = {
        "knowledge": cell.knowledge,
        "goal": cell.goal,
        "seed": f"seed {cell.seed}",
        "source": f"from {cell.source}" if cell.source else "",
    }
    differing = [text for name, text in parts.items() if text and len({getattr(other, name) for other in twins}) > 1]
    return f"{cell.label} ({', '.join(differing)})" if differing else cell.label


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
