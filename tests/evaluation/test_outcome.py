"""Rounding to 8 bits stays inside the ball, and targets are what they are called."""

import pytest
import torch

from guard import ThreatModel
from guard.config import Targets
from guard.evaluation.outcome import targets_for, to_8bit


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("epsilon", [8 / 255, 0.3, 1.5 / 255, 0.9])
def test_rounding_stays_inside_the_ball_and_on_the_grid(norm: str, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 4, 4), generator=generator).float() / 255
    threat = ThreatModel(norm=norm, epsilon=epsilon)  # type: ignore[arg-type]
    adversarial = threat.project(images + torch.randn(images.shape, generator=generator), images)
    rounded = to_8bit(adversarial, images, threat)
    assert threat.contains(rounded, images).all()
    assert ((rounded * 255 - (rounded * 255).round()).abs() < 1e-4).all()
    assert rounded.min() >= 0
    assert rounded.max() <= 1
    assert (rounded - adversarial).abs().max() <= 1 / 255 + 1e-6
    if norm == "linf" and epsilon > 1 / 255:
        nearest = (adversarial * 255).round() / 255
        fits = threat.contains(nearest, images)
        assert torch.allclose(rounded[fits], nearest[fits], atol=1e-6)


def test_targets() -> None:
    labels, index = torch.tensor([0, 1, 2, 3]), torch.arange(4)
    clean = torch.tensor([[-9.0, 2, 0, 1], [3, -9, 0, -1], [1, 2, 9, 3], [-5, 1, 2, 9]])

    def targets(kind: object) -> list[int] | None:
        found = targets_for(Targets(targets=kind), clean, labels, index, 0, 4)  # type: ignore[arg-type]
        return None if found is None else found.tolist()

    assert targets_for("untargeted", clean, labels, index, 0, 4) is None
    assert targets("least-likely") == [2, 3, 0, 0]  # never the label itself
    assert targets("next") == [1, 2, 3, 0]
    assert targets(3) == [3, 3, 3, 3]
    drawn = targets_for(Targets(targets="random"), clean, labels, index, 0, 4)
    assert drawn is not None
    assert (drawn != labels).all()
    many = targets_for(Targets(targets="random"), clean, torch.zeros(900).long(), torch.arange(900), 0, 4)
    assert many is not None
    assert (many.bincount(minlength=4)[1:] > 250).all()
