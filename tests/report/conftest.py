"""A synthetic report of every status, knowledge and norm, and records of trainings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from guard import Report
from guard.evaluation.result import Candidate, Cell, PartRow, Pictures, WorstCase
from guard.training.record import Epoch, Record

_ROBUST = {  # of 597 images, by defense: the adaptive and the oblivious attacker's count for each attack
    "none": ({"fgsm": 81, "pgd": 3, "apgd": 0}, {}),
    "adversarial-training": ({"fgsm": 421, "pgd": 371, "apgd": 366}, {}),
    "jpeg": ({"fgsm": 150, "pgd": 41, "apgd": 22}, {"fgsm": 402, "pgd": 468, "apgd": 455}),
    "shape-bias + truncated-relu": ({"fgsm": 233, "pgd": 190}, {"fgsm": 260, "pgd": 251, "apgd": 240}),
}
_CLEAN = {"none": 588, "adversarial-training": 569, "jpeg": 560, "shape-bias + truncated-relu": 540}


_PARTS = (
    PartRow(name="apgd-ce", images=560, broke=500, forwards_per_image=41.25, backwards_per_image=40),
    PartRow(name="square|2", images=60, broke=38, forwards_per_image=1204, backwards_per_image=0),
)
_CURVE = ((0.0, 0.93), (0.1, 0.8), (0.25, 0.5), (0.5, 0.33), (0.75, 0.2), (1.5, 0.04), (float("inf"), 0.04))


def scored(count: int, clean: int, total: int, cost: float) -> dict[str, Any]:
    share = count / total
    return {
        "images": total,
        "clean_accuracy": clean / total,
        "robust_accuracy": share,
        "robust_accuracy_interval": (max(0.0, share - 0.0391), min(1.0, share + 0.0384)),
        "robust_accuracy_8bit": min(clean, count + 1) / total,
        "attack_success_rate": (clean - count) / clean,
        "attack_success_denominator": clean,
        "max_distance": 0.2,
        "median_distance": 0.18,
        "forwards_per_image": cost,
        "backwards_per_image": cost,
        "seconds": cost / 7,
    }


def images(channels: int, side: int, epsilon: float) -> Pictures:
    random = np.random.default_rng(side)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [[np.sin(3 * x * (k + 1) + c) * np.cos(4 * y + k) for c in range(channels)] for k in range(8)]
    clean = (0.5 + 0.45 * np.array(waves)).astype(np.float32)
    moved = clean + epsilon * np.sign(random.normal(size=clean.shape))
    names = ("aeroplane", "car", "bird", "cat", "deer", "dog", "frog", "horse")
    return Pictures(
        clean=clean,
        adversarial=moved.clip(0, 1).astype(np.float32),
        labels=names,
        clean_predictions=(*names[:5], "cat", *names[6:]),
        predictions=(names[0], *names[2:], "ship"),
    )


def digits() -> tuple[list[Cell], list[WorstCase]]:
    place: dict[str, Any] = {
        "dataset": "digits",
        "model": "small-cnn",
        "goal": "untargeted",
        "norm": "linf",
        "epsilon": 0.2,
        "seed": 0,
    }
    cells, rows = [], []
    for defense, both in _ROBUST.items():
        for knowledge, counts in zip(("adaptive", "oblivious"), both, strict=True):
            here = place | {"defense": defense, "knowledge": knowledge}
            for cost, label in ((1, "fgsm"), (40, "pgd"), (204.6, "apgd")):
                same = {"key": f"{defense}-{knowledge}-{label}", "label": label, "attack": label}
                same |= {"attack_parameters": {"steps": int(cost), "loss": "cross-entropy"}}
                if label in counts:
                    found = scored(counts[label], _CLEAN[defense], 597, cost)
                    trial = Candidate(
                        name="bpda" if defense == "jpeg" else "gradient",
                        images=597,
                        robust_accuracy=counts[label] / 597,
                        forwards_per_image=cost,
                        backwards_per_image=cost,
                        seconds=cost / 9,
                    )
                    doubt = knowledge == "oblivious" and label == "fgsm"
                    status = {"status": "SUSPECT", "reason": "the model's outputs look like probabilities"}
                    verdict = status if doubt else {"status": "VALID"}
                    members = _PARTS if (defense, label) == ("jpeg", "apgd") else ()
                    cells.append(Cell(**here, **same, **found, **verdict, candidates=(trial,), parts=members))  # type: ignore[arg-type]
                elif counts:
                    reason = (
                        "attack 'apgd' from 'guard-tap 0.2' moved a pixel by 0.247; the linf budget is 0.2 (51/255)"
                    )
                    cells.append(Cell(**here, **same, status="INVALID", reason=reason, images=597))
                else:
                    reason = f"defense '{defense}' adds nothing that an oblivious attacker could ignore"
                    cells.append(Cell(**here, **same, status="NOT_APPLICABLE", reason=reason, images=597))
            if counts:
                rows.append(_worst(here, counts, _CLEAN[defense], 597))
    return cells, rows


def _worst(here: dict[str, Any], counts: dict[str, int], clean: int, total: int) -> WorstCase:
    verdict = {"status": "VALID"}
    if len(counts) < 3:
        verdict = {"status": "INCOMPLETE", "reason": "without apgd: an upper bound only"}
    elif here["knowledge"] == "oblivious":
        verdict = {"status": "SUSPECT", "reason": "the model's outputs look like probabilities"}
    left, first = clean, {}
    for label, count in counts.items():
        first[label], left = max(left - count, 0), min(left, count)
    figures = scored(left, clean, total, 245.6)
    only = {label: min(number, 4) for label, number in first.items()}
    key = f"{here['model']}-{here['defense']}-{here['knowledge']}-{here['norm']}-worst"
    return WorstCase(**here, key=key, **verdict, **figures, broken_first=first, broken_only=only)  # type: ignore[arg-type]


def photographs() -> tuple[list[Cell], list[WorstCase]]:
    cells, rows = [], []
    for model, shift in (("resnet18-cifar", 0), ("Engstrom2019Robustness", 300)):
        for norm, epsilon in (("linf", 8 / 255), ("l2", 0.5)):
            here: dict[str, Any] = {"dataset": "cifar10", "model": model, "defense": "none", "goal": "untargeted"}
            here |= {"norm": norm, "epsilon": epsilon, "seed": 0, "knowledge": "adaptive"}
            counts = {label: shift + 200 - 8 * number for number, label in enumerate(("fgsm", "pgd", "apgd"))}
            for label, count in counts.items():
                nearest = (norm, label) == ("l2", "apgd")
                cells.append(
                    Cell(
                        **here,
                        key=f"{model}-{norm}-{label}",
                        label=label,
                        attack=label,
                        attack_parameters={},
                        status="VALID",
                        curve=_CURVE if nearest else (),
                        **scored(count, 930, 1000, 10) | ({"median_distance": 0.26} if nearest else {}),
                    )
                )
            rows.append(_worst(here, counts, 930, 1000))
    return cells, rows


@pytest.fixture
def report() -> Report:
    return build()


def build() -> Report:
    (cells, rows), (more, further) = digits(), photographs()
    pictures = {cell.key: images(1, 8, 0.2) for cell in cells if cell.status in ("VALID", "SUSPECT")}
    pictures |= {cell.key: images(3, 32, 8 / 255) for cell in more}
    return Report(
        run={
            "started": "2026-01-05T10:00:00+00:00",
            "seconds": 80.4,
            "device": "cpu",
            "computed_shards": 1204,
            "cached_shards": 12,
        },
        config={
            "dataset": {"name": "digits"},
            "threat": [{"norm": "linf", "epsilon": 0.2}],
            "attacks": ["fgsm", "pgd"],
        },
        versions={"guard-robustness": "0.1.0", "torch": "2.9", "python": "3.11.7"},
        plugins={"attack pgd": "'pgd' (guard-robustness 0.1.0)", "attack apgd": "'tap' (guard-tap 0.2)"},
        cells=[*cells, *more],
        worst_case=[*rows, *further],
        pictures=pictures,
    )


_EVIL = "<script>alert(1)</script>\"'&"


def epoch(number: int, **changes: Any) -> Epoch:
    share = 1 - 1 / (number + 1)
    return Epoch(
        **{"epoch": number, "lr": 0.1 / number, "loss": 2 / number, "seconds": 12.4}
        | {"clean": share, "fgsm": 0.8 * share, "pgd": 0.7 * share}
        | changes
    )


def record(*epochs: Epoch, **changes: Any) -> Record:
    config = {
        "dataset": {"name": "cifar10", "split": "train"},
        "threat": [{"norm": "linf", "epsilon": 8 / 255}],
        "training": {"epochs": len(epochs)},
    }
    given = {
        "config": config,
        "label": "trades + awp",
        "model": "resnet18-cifar",
        "num_classes": 10,
        "image_shape": (3, 32, 32),
        "images": 45_000,
        "held_out": 5_000,
        "data": "3f9a1c",
        "versions": {"guard-robustness": "0.1.0", "torch": "2.9"},
        "epochs": epochs,
        "kept": len(epochs) or None,
        "finished": True,
    }
    return Record(**given | changes)


_NOTHING = {"clean": None, "fgsm": None, "pgd": None}
RECORDS = {
    "one": record(epoch(1)),
    "ten": record(*map(epoch, range(1, 11)), kept=7),
    "many": record(*map(epoch, range(1, 201)), kept=140),
    "nothing held out": record(*(epoch(number, **_NOTHING) for number in range(1, 6)), held_out=0),
    "no bound": record(*(epoch(number, fgsm=None) for number in range(1, 6))),
    "alarm": record(epoch(1), epoch(2, events=("PGD fell", "a step back")), epoch(3, events=(_EVIL,)), kept=1),
    "not finished": record(epoch(1), epoch(2), finished=False, config={"training": {"epochs": 8}}),
    "not begun": record(finished=False),
    "nothing known": record(epoch(1, loss=float("inf"), lr=0), config={}, kept=None),
    "evil": record(
        epoch(1, events=(_EVIL,)),
        config={_EVIL: _EVIL, "dataset": _EVIL, "threat": _EVIL},
        label=_EVIL,
        model=_EVIL,
        data=_EVIL,
        versions={_EVIL: _EVIL},
    ),
}


@pytest.fixture(name="epoch")
def _epoch() -> Callable[..., Epoch]:
    """epoch(number, **changes) -> the record of an epoch."""
    return epoch


@pytest.fixture(name="record")
def _record() -> Callable[..., Record]:
    """record(*epochs, **changes) -> the record of a training."""
    return record


@pytest.fixture
def records() -> dict[str, Record]:
    return RECORDS


@pytest.fixture(params=RECORDS.values(), ids=RECORDS)
def shown(request: pytest.FixtureRequest) -> Record:
    """Each of the records."""
    found: Record = request.param
    return found
