"""Victims and attacks that fail: their cells are INVALID and name who failed, the others go on."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Attack, Defense, Goal, Report, Rng, ThreatModel, Victim
from guard.progress import Progress

LINF = ThreatModel(norm="linf", epsilon=0.02)


class Blur(Defense):
    """Halves the contrast."""

    name = "blur"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return (images + 0.5) / 2


class Nan(Blur):
    """Loses the images."""

    name = "nan"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images * float("nan")


class Crashes(Blur):
    """Raises."""

    name = "crashes"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        raise ValueError("no blur")


class LateCrash(Attack):
    """Crashes at image 100."""

    name = "late-crash"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        if (rng.index == 101).any():
            raise RuntimeError("late")
        return images


class Brighten(Attack):
    """Asks nothing."""

    name = "brighten"
    access = "transfer"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        return threat.project(images + threat.epsilon, images)


class Lossy(Defense):
    """Keeps one image of a batch, or returns what is no image, or crashes."""

    name = "lossy"
    how: str = "one"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        if self.how == "crash":
            raise ValueError("boom")
        if self.how == "none":
            return None  # type: ignore[return-value]
        return images[:1]


class Meter(Progress):
    """Adds up."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, what: str, total: int) -> None:
        self.total = total

    def advance(self, units: int, what: str = "") -> None:
        assert units >= 0
        self.done += units


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    return guard.evaluate(model, data, **({"attacks": ["fgsm"], "threat": LINF} | settings))


@pytest.mark.parametrize("defense", [Nan(), Crashes()])
def test_a_defended_network_that_fails_is_invalid_and_the_others_go_on(
    defense: Defense, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    meter = Meter()
    report = evaluate(
        linear,
        (images, labels),
        defenses=["none", defense, Blur()],
        knowledge=["adaptive", "oblivious"],
        progress=meter,
    )
    found = {(cell.defense, cell.knowledge): cell.status for cell in report.cells}
    assert found == {
        ("none", "adaptive"): "VALID",
        ("none", "oblivious"): "NOT_APPLICABLE",
        (defense.name, "adaptive"): "INVALID",
        (defense.name, "oblivious"): "INVALID",
        ("blur", "adaptive"): "VALID",
        ("blur", "oblivious"): "VALID",
    }
    reasons = {cell.reason for cell in report.cells if cell.status == "INVALID"}
    if defense.name == "nan":
        assert reasons == {"the model returns NaN or infinity for 256 of 256 clean images"}
    else:
        (reason,) = reasons
        assert reason.startswith("defense 'crashes' raised ValueError: no blur (test_failing.py:")
    worst = {(row.defense, row.knowledge): row.status for row in report.worst_case}
    assert worst[defense.name, "adaptive"] == "INCOMPLETE"
    assert worst["blur", "adaptive"] == "VALID"
    assert meter.done == meter.total > 0


@pytest.mark.parametrize("batch_size", [64, 256])
def test_progress_ends_at_its_total(batch_size: int, linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    for _ in range(2):  # computed, then from the store
        meter = Meter()
        evaluate(
            linear,
            (images, labels),
            attacks=[LateCrash(), "fgsm", "noise"],
            defenses=["none", Blur()],
            knowledge=["adaptive", "oblivious"],
            batch_size=batch_size,
            progress=meter,
        )
        assert meter.total == 300 * (3 + (3 + 3 + 2) + 3)  # without smoothing for noise
        assert meter.done == meter.total


def test_nan_on_adversarial_images_is_invalid(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where((x > 0.7).flatten(1).any(1)[:, None], float("nan"), 1.0) * linear(x)

    report = evaluate(Fragile(), (images, labels), attacks=[Brighten()])
    assert report.cells[0].status == "INVALID"
    text = "the victim returns NaN or infinity on the adversarial images of attack 'brighten' from 'not registered'"
    assert report.cells[0].reason == text


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("one", r"defense 'lossy' returns shape \(1, .*\) for images of \(\d+, .*\)\. Return as many images"),
        ("none", r"defense 'lossy' returns a NoneType for images of \(\d+, .*\)\. Return as many images"),
        ("crash", r"defense 'lossy' raised ValueError: boom \(test_failing\.py:\d+\)"),
    ],
)
def test_a_stage_that_fails_is_named_and_the_others_go_on(
    how: str, text: str, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    report = guard.evaluate(
        linear,
        (images, labels),
        attacks=["fgsm"],
        defenses=["none", Lossy(how=how)],
        threat=guard.ThreatModel(norm="linf", epsilon=0.02),
    )
    fine, broken = report.cells
    assert (fine.status, broken.status) == ("VALID", "INVALID")
    assert re.search(text, broken.reason)
