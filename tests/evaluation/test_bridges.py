"""Other ways back through a stage that is not differentiable, each a candidate of the adaptive attacker."""

import torch
from torch import Tensor, nn

import guard
from guard import Defense, Report, Rng, ThreatModel
from guard.evaluation.bridges import Smoothing, Straight

LINF = ThreatModel(norm="linf", epsilon=0.1)


class Rounding(Defense):
    """To 64 levels, and says that no gradient is known."""

    name = "rounding"
    differentiable = False

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return (images * 63).round() / 63


class Misleading(Rounding):
    """With a stand-in that leads an attacker away."""

    name = "misleading"

    def surrogate(self, images: Tensor, rng: Rng) -> Tensor:
        return -images


class Plateau(nn.Module):
    """A linear model whose logits stop growing a little above 0, where there is no gradient."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images)
        return logits.clamp(-0.3, 0.3)


def evaluate(model: nn.Module, data: tuple[Tensor, Tensor], defense: Defense, attack: str = "fgsm") -> Report:
    return guard.evaluate(model, data, attacks=[attack], threat=LINF, defenses=["none", defense])


def test_a_misleading_surrogate_is_gone_around(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    plain, defended = evaluate(linear, (images, labels), Misleading()).cells
    shares = {candidate.name: candidate.robust_accuracy for candidate in defended.candidates}
    assert list(shares) == ["bpda", "identity", "smoothed", "oblivious"]
    assert plain.robust_accuracy is not None
    assert shares["bpda"] > 0.8  # away from the boundary
    assert abs(shares["identity"] - plain.robust_accuracy) < 0.02
    assert defended.robust_accuracy is not None
    assert defended.robust_accuracy <= min(shares.values())


def test_smoothing_finds_a_way_off_a_plateau(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    _, defended = evaluate(Plateau(linear), (images, labels), Rounding()).cells
    shares = {candidate.name: candidate for candidate in defended.candidates}
    assert list(shares) == ["bpda", "smoothed", "oblivious"]
    stuck = min(shares["bpda"].robust_accuracy, shares["oblivious"].robust_accuracy)
    assert shares["smoothed"].robust_accuracy < stuck - 0.15
    assert shares["smoothed"].forwards_per_image == shares["smoothed"].backwards_per_image == 4


def test_what_is_differentiable_or_asks_for_no_gradient_has_no_bridges(
    linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    for defense, attack, names in (
        (guard.Stack(members=()), "fgsm", ["gradient"]),
        (Rounding(), "noise", ["queries", "oblivious"]),
    ):
        cell = evaluate(linear, (images, labels), defense, attack).cells[-1]
        assert [candidate.name for candidate in cell.candidates] == names


def test_noise_moves_a_pixel_by_half_its_part_of_the_ball(images: Tensor) -> None:
    rng = Rng(0, torch.arange(len(images)), (1, 4, 4))
    for norm, epsilon, each in (("linf", 0.2, 0.1), ("l2", 0.8, 0.1), ("l1", 3.2, 0.1)):
        threat = ThreatModel.model_validate({"norm": norm, "epsilon": epsilon})
        moved = Smoothing(threat=threat).preprocess(images, rng) - images
        assert abs(float(moved.std()) - each) < 0.003


def test_straight_is_the_stage_with_the_identity_for_a_way_back(images: Tensor) -> None:
    rng = Rng(0, torch.arange(len(images)), (1, 4, 4))
    stage = Straight(stage=Misleading())
    assert torch.equal(stage.preprocess(images, rng), Rounding().preprocess(images, rng))
    assert torch.equal(stage.surrogate(images, rng), images)
    assert not stage.differentiable
    assert not stage.randomized
