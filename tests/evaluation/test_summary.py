"""From outcomes of images to figures: per image the attacker's best, and what a worst case spans."""

import math
from typing import Any

import numpy as np
import pytest

from guard.evaluation.outcome import PART
from guard.evaluation.result import Cell
from guard.evaluation.store import Arrays
from guard.evaluation.summary import Scored, best, figures, joined, minimal, parts, worst_cases
from guard.statistics import wilson

LABELS = np.zeros(4, np.int64)


def outcome(correct: list[int], reached: list[int] | None = None, **changes: Any) -> Arrays:
    right = np.array(correct, bool)
    arrays = {
        "correct": right,
        "correct_8bit": right,
        "reached": ~right if reached is None else np.array(reached, bool),
        "distance": np.arange(4.0),
        "low_frequency_energy": np.array([0.5, 0.25, 1.0, np.nan]),
        "forwards": np.full(4, 2),
        "backwards": np.full(4, 1),
        "target": np.full(4, -1),
        "prediction": np.where(right, 0, 1),
        "undecided": right,
        "adversarial": np.zeros((4, 1, 1, 1), np.float32),
        "seconds": np.array(1.5),
    }
    return arrays | {name: np.array(value) for name, value in changes.items()}


def scored(label: str, result: Arrays | None, **changes: Any) -> Scored:
    status = "INVALID" if result is None else "VALID"
    shared: dict[str, Any] = {"key": label, "dataset": "d", "model": "m", "defense": "none", "goal": "untargeted"}
    shared |= {"norm": "linf", "epsilon": 0.1, "knowledge": "adaptive", "seed": 0, "status": status, "images": 4}
    shared |= {"label": label, "attack": label, "attack_parameters": {}} | changes
    return Scored(Cell(**shared), result, None if result is None else np.array([1, 1, 1, 0], bool))


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 50), (50, 50), (7, 50), (999, 1000)])
def test_wilson_is_its_closed_form(count: int, total: int) -> None:
    z, share = 1.959963984540054, count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    assert wilson(count, total) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= wilson(count, total)[0] <= share <= wilson(count, total)[1] <= 1


def test_the_best_trial_of_each_image() -> None:
    one = outcome([1, 0, 1, 1], distance=[1.0, 1, 1, 1], adversarial=np.full((4, 1, 1, 1), 1.0))
    two = outcome(
        [1, 0, 0, 1], distance=[2.0, 2, 2, 2], adversarial=np.full((4, 1, 1, 1), 2.0), correct_8bit=[1, 1, 1, 0]
    )
    merged = best([one, two])
    assert merged["correct"].tolist() == [True, False, False, True]
    assert merged["correct_8bit"].tolist() == [True, False, True, False]
    assert merged["distance"].tolist() == [1, 1, 2, 1]
    assert merged["adversarial"].flatten().tolist() == [1, 1, 2, 1]
    assert merged["undecided"].tolist() == [True, False, False, True]  # by neither, and not broken
    assert merged["forwards"].tolist() == [4] * 4
    assert merged["backwards"].tolist() == [2] * 4
    assert float(merged["seconds"]) == 3


def test_reaching_the_target_is_better_than_any_error() -> None:
    error = outcome([0, 0, 0, 0], [0, 0, 0, 0], target=[2] * 4, prediction=[1] * 4)
    target = outcome([1, 0, 1, 1], [0, 1, 0, 0], target=[2] * 4, prediction=[0, 2, 0, 0])
    merged = best([error, target])
    assert merged["reached"].tolist() == [False, True, False, False]
    assert merged["prediction"].tolist() == [1, 2, 1, 1]


def test_denominators() -> None:
    clean = np.array([1, 1, 1, 0], bool)
    found = figures(outcome([0, 1, 0, 0]), clean, LABELS, True)
    assert found["robust_accuracy"] == 0.25
    assert (found["attack_success_rate"], found["attack_success_denominator"]) == (2 / 3, 3)
    assert found["median_distance"] == 1  # of images 0 and 2
    targeted = outcome([0, 1, 0, 0], [1, 0, 0, 1], target=[1, 1, 0, 1])
    found = figures(targeted, clean, LABELS, False)  # image 2 has its target for a label
    assert (found["attack_success_rate"], found["attack_success_denominator"]) == (1 / 2, 2)
    assert found["robust_accuracy"] == 0.25
    assert found["robust_accuracy_8bit"] is None
    nobody = figures(outcome([0, 0, 0, 0]), ~clean & clean, LABELS, True)
    assert nobody["attack_success_rate"] is None
    assert nobody["median_distance"] is None


def test_energy_is_that_of_images_that_were_moved() -> None:
    clean = np.ones(4, bool)
    assert figures(outcome([1, 0, 1, 1]), clean, LABELS, True)["low_frequency_energy"] == pytest.approx(1.75 / 3)
    still = outcome([1, 0, 1, 1], low_frequency_energy=[np.nan] * 4)
    assert figures(still, clean, LABELS, True)["low_frequency_energy"] is None
    breaks = outcome([1, 1, 1, 0], low_frequency_energy=[0.0] * 4)
    merged = best([outcome([1, 0, 1, 1]), breaks])["low_frequency_energy"]  # image by image of the trial that counts
    assert np.array_equal(merged, [0.5, 0.25, 1, 0])


def test_shards_are_joined_in_order() -> None:
    whole = joined([outcome([1, 0, 1, 1]), outcome([0, 0, 1, 1], adversarial=np.zeros((0, 1, 1, 1)))])
    assert whole["correct"].tolist() == [True, False, True, True, False, False, True, True]
    assert len(whole["adversarial"]) == 4
    assert float(whole["seconds"]) == 3


def test_each_source_of_transfers_has_a_worst_case_of_its_own() -> None:
    items = [
        scored("pgd", outcome([0, 1, 1, 0]), knowledge="transfer", source="a"),
        scored("bim", outcome([1, 0, 1, 0]), knowledge="transfer", source="a"),
        scored("pgd", outcome([1, 1, 1, 0]), knowledge="transfer", source="b"),
    ]
    rows = worst_cases(items, LABELS, True)
    assert [(row.source, row.robust_accuracy) for row in rows] == [("a", 0.25), ("b", 0.75)]


def test_adaptive_spans_all_knowledge_seeds_and_goals() -> None:
    items = [
        scored("pgd", outcome([0, 1, 1, 0])),
        scored("pgd", outcome([1, 0, 1, 0]), knowledge="oblivious"),
        scored("pgd", outcome([1, 1, 0, 0]), knowledge="transfer", seed=1, goal="targeted: next"),
        scored("pgd", outcome([0, 0, 0, 0]), epsilon=0.2),
        scored("pgd", outcome([0, 0, 0, 0]), defense="other"),
        scored("no", None, status="NOT_APPLICABLE", knowledge="oblivious"),
    ]
    rows = {(row.defense, row.epsilon, row.knowledge): row for row in worst_cases(items, LABELS, True)}
    assert {place: row.robust_accuracy for place, row in rows.items()} == {
        ("none", 0.1, "adaptive"): 0,
        ("none", 0.1, "oblivious"): 0.5,
        ("none", 0.1, "transfer"): 0.5,
        ("none", 0.2, "adaptive"): 0,
        ("other", 0.1, "adaptive"): 0,
    }
    adaptive = rows["none", 0.1, "adaptive"]
    assert adaptive.status == "VALID"
    assert adaptive.goal == "untargeted and targeted: next"
    assert adaptive.broken_first == adaptive.broken_only == {"pgd": 3}
    assert adaptive.attack_success_denominator == 3


def test_who_broke_what() -> None:
    items = [scored("a", outcome([0, 0, 1, 0])), scored("b", outcome([0, 1, 0, 0])), scored("c", outcome([0, 1, 1, 0]))]
    (row,) = worst_cases(items, LABELS, True)
    assert row.broken_first == {"a": 2, "b": 1, "c": 0}
    assert row.broken_only == {"a": 1, "b": 1, "c": 0}


def test_what_is_missing_is_named() -> None:
    items = [
        scored("pgd", outcome([0, 1, 1, 0])),
        scored("pgd", None, knowledge="oblivious"),
        scored("fgsm", outcome([1, 1, 1, 0])),
        scored("crash", None),
        scored("crash", None, seed=1),
    ]
    adaptive, oblivious = worst_cases(items, LABELS, True)
    assert adaptive.status == oblivious.status == "INCOMPLETE"
    assert adaptive.reason == ("without crash (seed 0), crash (seed 1), pgd (oblivious): an upper bound only")
    assert adaptive.robust_accuracy == 0.5
    assert (oblivious.robust_accuracy, oblivious.images) == (None, 4)


def test_a_suspect_cell_makes_its_worst_case_suspect() -> None:
    doubt = {"status": "SUSPECT", "reason": "why"}
    items = [scored("a", outcome([1, 1, 1, 0])), scored("b", outcome([1, 1, 1, 0]), knowledge="oblivious", **doubt)]
    assert [(row.status, row.reason) for row in worst_cases(items, LABELS, True)] == [("SUSPECT", "why")] * 2


def test_distances_count_images_that_were_right() -> None:
    clean = np.array([1, 1, 1, 0], bool)
    found = minimal(outcome([0, 1, 0, 0], nearest=[0.3, np.inf, 0.1, 0.0]), clean, LABELS, [0.2])
    assert found == {"median_distance": 0.3, "curve": ((0, 0.75), (0.1, 0.5), (0.2, 0.5), (0.3, 0.25))}
    targeted = outcome([0, 1, 0, 0], target=[1, 1, 0, 1], nearest=[0.3, np.inf, 0.0, 0.1])
    found = minimal(targeted, clean, LABELS, [0.2])  # image 2 has its target for a label: it stays right
    assert found == {"median_distance": np.inf, "curve": ((0, 0.75), (0.2, 0.75), (0.3, 0.5))}
    none = minimal(outcome([0, 0, 0, 0], nearest=[0.0] * 4), ~clean & clean, LABELS, [0.2])
    assert none == {"median_distance": None, "curve": ((0, 0), (0.2, 0))}
    assert minimal(outcome([0, 1, 0, 0]), clean, LABELS, [0.2]) == {}


def test_the_nearest_of_several_trials() -> None:
    one = outcome([1, 0, 1, 1], nearest=[np.inf, 1, 2, np.inf])
    two = outcome([1, 0, 0, 1], nearest=[3, 2, 1, np.inf])
    assert best([one, two])["nearest"].tolist() == [3, 1, 1, np.inf]
    assert "nearest" not in best([one, outcome([1, 0, 0, 1])])  # a worst case over other attacks too


def test_members_of_a_cascade_are_those_of_all_shards() -> None:
    first = [[2, 1, 1, 1], [2, 1, 0, 1], [2, 1, 0, 1], [9, 9, 1, 1]]
    second = [[0, 0, 0, 0], [7, 0, 1, 1], [8, 0, 0, 1], [9, 9, 1, 1]]
    idle = outcome([1, 1, 1, 0], [0] * 4)
    some = outcome([0, 0, 1, 0], **{PART + "a": first})
    more = outcome([0, 0, 1, 0], **{PART + "a": first, PART + "b": second})
    clean = np.array([1, 1, 1, 0] * 3, bool)
    a, b = parts(joined([idle, some, more]), clean)
    assert (a.name, a.images, a.broke, a.forwards_per_image, a.backwards_per_image) == ("a", 6, 2, 2, 1)
    assert (b.name, b.images, b.broke, b.forwards_per_image, b.backwards_per_image) == ("b", 2, 1, 7.5, 0)
    assert parts(idle, clean[:4]) == ()
