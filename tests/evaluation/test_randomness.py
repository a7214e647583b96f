"""Victims that draw: what is not dropped, what repeats, and what is said about it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Defense, Report, Rng, ThreatModel

LINF = ThreatModel(norm="linf", epsilon=0.02)


class Jitter(Defense):
    """Random brightness."""

    name = "jitter"
    randomized = True
    size: float = 0.05

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images + self.size * rng.normal(()).view(-1, 1, 1, 1).to(images)


class Noisy(Defense):
    """Draws from torch's own generator, which it should not."""

    name = "noisy"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images + 0.05 * torch.randn(images.shape)


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    return guard.evaluate(model, data, **({"attacks": ["fgsm"], "threat": LINF} | settings))


def test_nothing_is_dropped_where_the_victim_draws(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = {"name": "pgd", "steps": 3}
    still, draws = evaluate(linear, (images, labels), attacks=[attack], defenses=["none", Jitter()]).cells
    assert still.forwards_per_image is not None
    assert still.forwards_per_image < 3
    assert draws.forwards_per_image == 6  # through the defense, and without it
    assert draws.status == "SUSPECT"
    assert draws.reason == "the defense is randomized, and each image was scored on one draw only"


def test_foreign_draws_repeat_and_leave_the_generator(
    linear: nn.Module, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cells = []
    for number in range(2):
        monkeypatch.setenv("GUARD_CACHE", str(tmp_path / str(number)))
        torch.manual_seed(number)
        before = torch.get_rng_state()
        cells.append(evaluate(linear, (images, labels), defenses=[Noisy()]).cells[0])
        assert torch.equal(torch.get_rng_state(), before)
    assert cells[0].clean_accuracy == cells[1].clean_accuracy
    assert cells[0].robust_accuracy == cells[1].robust_accuracy


def test_undeclared_randomness_is_suspect(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    (cell,) = evaluate(linear, (images, labels), defenses=[Noisy()]).cells
    assert cell.status == "SUSPECT"
    assert cell.reason == "the defense is randomized, and each image was scored on one draw only"
