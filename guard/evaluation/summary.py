"""Summaries: from what became of each image to cells and worst cases."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.evaluation.outcome import PICTURES
from guard.evaluation.plan import PlannedCell
from guard.evaluation.result import Candidate, Cell, Status, WorstCase
from guard.evaluation.statistics import wilson
from guard.evaluation.store import Arrays

Flags = NDArray[np.bool_]


def joined(shards: Sequence[Arrays]) -> Arrays:
    """The shards of one trial end to end; seconds added up. Adversarial images are all of them or those of the first
    shard's pictures."""
    arrays = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0] if name != "seconds"}
    if len(arrays["adversarial"]) < len(arrays["correct"]):
        arrays["adversarial"] = shards[0]["adversarial"][:PICTURES]
    return arrays | {"seconds": np.array(sum(float(shard["seconds"]) for shard in shards))}


def best(outcomes: Sequence[Arrays]) -> Arrays:
    """Per image the outcome of the attacker's best trial: one that reached the goal, else one that broke the image,
    else the first; costs added up."""
    if len(outcomes) == 1:
        return outcomes[0]
    rank = np.stack([np.where(o["reached"], 0, np.where(~o["correct"], 1, 2)) for o in outcomes])
    choice = rank.argmin(0)
    rows = np.arange(len(choice))
    arrays = {name: np.stack([o[name] for o in outcomes])[choice, rows] for name in outcomes[0] if _per_image(name)}
    arrays["correct"] = np.logical_and.reduce([o["correct"] for o in outcomes])
    arrays["correct_8bit"] = np.logical_and.reduce([o["correct_8bit"] for o in outcomes])
    for cost in ("forwards", "backwards"):
        arrays[cost] = np.sum([o[cost] for o in outcomes], axis=0)
    kept = min(len(o["adversarial"]) for o in outcomes)
    arrays["adversarial"] = np.stack([o["adversarial"][:kept] for o in outcomes])[choice[:kept], rows[:kept]]
    arrays["seconds"] = np.array(sum(float(o["seconds"]) for o in outcomes))
    return arrays


def _per_image(name: str) -> bool:
    return name in ("reached", "distance", "target", "prediction")


def candidate(name: str, outcome: Arrays, clean: Flags) -> Candidate:
    """One trial of a cell."""
    return Candidate(
        name=name,
        images=len(outcome["correct"]),
        robust_accuracy=float((outcome["correct"] & clean).mean()),
        forwards_per_image=float(outcome["forwards"].mean()),
        backwards_per_image=float(outcome["backwards"].mean()),
        seconds=float(outcome["seconds"]),
    )


def figures(outcome: Arrays, clean: Flags, on_grid: bool) -> dict[str, Any]:
    """The figures of a cell, from its outcome and which images are classified correctly clean."""
    correct, total = outcome["correct"] & clean, len(clean)
    targeted = bool((outcome["target"] >= 0).any())
    counted = clean & (outcome["target"] != outcome["label"]) if targeted else clean
    success = counted & (outcome["reached"] if targeted else ~outcome["correct"])
    distance = outcome["distance"]
    return {
        "images": total,
        "clean_accuracy": float(clean.mean()),
        "robust_accuracy": float(correct.mean()),
        "robust_accuracy_interval": wilson(int(correct.sum()), total),
        "robust_accuracy_8bit": float((outcome["correct_8bit"] & clean).mean()) if on_grid else None,
        "attack_success_rate": float(success.sum() / counted.sum()) if counted.any() else None,
        "attack_success_denominator": int(counted.sum()),
        "max_distance": float(distance.max()),
        "median_distance": float(np.median(distance[success])) if success.any() else None,
        "forwards_per_image": float(outcome["forwards"].mean()),
        "backwards_per_image": float(outcome["backwards"].mean()),
        "seconds": float(outcome["seconds"]),
    }


def worst_cases(cells: Sequence[tuple[PlannedCell, Cell, Arrays | None]], clean: dict[str, Flags]) -> list[WorstCase]:
    """Per image the worst over attacks, seeds and goals, for each model, defense, threat and knowledge.

    `clean`: for each cell key the images classified correctly clean. The adaptive attacker could have taken any point
    of the others, so that row spans all knowledge.
    """
    groups: dict[tuple[str, str, str, float, str], list[tuple[PlannedCell, Cell, Arrays | None]]] = {}
    for item in cells:
        cell = item[1]
        if cell.status != "NOT_APPLICABLE":
            groups.setdefault((cell.model, cell.defense, cell.norm, cell.epsilon, cell.knowledge), []).append(item)
    rows = []
    for (*place, knowledge), members in groups.items():
        if knowledge == "adaptive":
            members = [item for key, group in groups.items() if list(key[:4]) == place for item in group]
        rows.append(_worst(members, knowledge, clean))
    return rows


def _worst(
    members: Sequence[tuple[PlannedCell, Cell, Arrays | None]], knowledge: str, clean: dict[str, Flags]
) -> WorstCase:
    first = members[0][1]
    shared: dict[str, Any] = {
        "key": f"{first.key}-worst-{knowledge}",
        "dataset": first.dataset,
        "model": first.model,
        "defense": first.defense,
        "goal": " and ".join(_unique(cell.goal for _, cell, _ in members)),
        "norm": first.norm,
        "epsilon": first.epsilon,
        "knowledge": knowledge,
        "seed": first.seed,
    }
    done = [(cell, outcome) for _, cell, outcome in members if outcome is not None]
    missing = _unique(cell.label for _, cell, outcome in members if outcome is None)
    status, reason = _status([cell for cell, _ in done], missing)
    if not done:
        return WorstCase(**shared, status=status, reason=reason)
    right = clean[done[0][0].key]
    broken = {label: np.zeros(len(right), bool) for label in _unique(cell.label for cell, _ in done)}
    for cell, outcome in done:
        broken[cell.label] |= right & ~outcome["correct"]
    times = np.sum(list(broken.values()), axis=0)
    seen = np.zeros(len(right), bool)
    broken_first = {}
    for label, flags in broken.items():
        broken_first[label] = int((flags & ~seen).sum())
        seen |= flags
    merged = best([outcome for _, outcome in done]) | {"label": done[0][1]["label"]}
    merged["target"] = np.full(len(right), -1)
    return WorstCase(
        **shared,
        status=status,
        reason=reason,
        **figures(merged, right, done[0][0].robust_accuracy_8bit is not None),
        broken_first=broken_first,
        broken_only={label: int((flags & (times == 1)).sum()) for label, flags in broken.items()},
    )


def _status(done: Sequence[Cell], missing: Sequence[str]) -> tuple[Status, str]:
    if missing:
        return "INCOMPLETE", f"without {', '.join(missing)}: an upper bound only"
    suspect = [cell for cell in done if cell.status == "SUSPECT"]
    return ("SUSPECT", suspect[0].reason) if suspect else ("VALID", "")


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
