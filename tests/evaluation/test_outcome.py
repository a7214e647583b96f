"""Rounding to 8 bits stays inside the ball, targets are what they are called, and energy is that of what was moved."""

import json

import pytest
import torch
from torch import Tensor, nn

from guard import Attack, Cascade, Goal, Rng, ThreatModel, Victim, evaluate, idct2
from guard.config import Targets
from guard.evaluation.grid import to_8bit
from guard.evaluation.outcome import targets_for


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


class Wave(Attack):
    """Adds one basis function to every other image: half its energy, or none, is low where the side is 4."""

    name = "wave"
    low: bool = True
    on: int = 0

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        coefficients = torch.zeros(images.shape[-2:])
        coefficients[3, 2] = 1
        coefficients[0, 0] = float(self.low)
        wave = idct2(coefficients)
        moved = (rng.index % 2 == self.on).view(-1, 1, 1, 1)
        return torch.where(moved, images + 0.5 * threat.epsilon * wave / wave.abs().max(), images)


class Both(Cascade):
    """The wave that is not low, on the other images."""

    name = "both"

    def members(self, threat: ThreatModel) -> list[tuple[str, Attack]]:
        return [("high", Wave(low=False, on=1))]


def test_a_cell_says_how_low_its_perturbations_are(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Still(Attack):
        """Moves nothing."""

        name = "still"

        def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
            return images.clone()

    attacks = [Wave(), Wave(low=False), Still(), Both(after=Wave())]
    report = evaluate(linear, (images, labels), attacks=attacks, threat={"norm": "linf", "epsilon": 0.2})
    half, none, still, both = json.loads(report.to_json())["cells"]
    assert half["low_frequency_energy"] == pytest.approx(0.5, abs=1e-5)
    assert none["low_frequency_energy"] == pytest.approx(0, abs=1e-5)
    assert still["low_frequency_energy"] is None
    broke = both["parts"][0]["broke"]  # these keep the half-low wave; of the others those of odd index were moved
    assert broke
    attacked = (torch.arange(300) % 10 != 0) & (torch.arange(300) % 2 == 1)
    expected = 0.5 * broke / (broke + int(attacked.sum()))
    assert both["low_frequency_energy"] == pytest.approx(expected, abs=1e-5)
