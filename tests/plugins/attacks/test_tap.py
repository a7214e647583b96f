"""TAP: its objective's gradient, where that is finite, and what its terms do."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guard_plugins.attacks.tap import TAP
from torch import Tensor, nn

import guard
from guard import Goal, InputError, Rng, ThreatModel, Victim, dct2

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Small = Callable[..., nn.Module]
Perturb = Callable[..., Tensor]
LINF = ThreatModel(norm="linf", epsilon=0.1)


@pytest.fixture
def goal(small: Small, images: Tensor) -> Goal:
    return Goal(small()(images).argmax(1))


def begin(attack: TAP, victim: Victim, images: Tensor, goal: Goal) -> dict[str, Tensor]:
    _, memory = attack.start(victim, images, goal, LINF, Rng(0, torch.arange(len(images)), (3, 4, 4)), 0)
    return memory


def objective(attack: TAP, net: Any, points: Tensor, images: Tensor, goal: Goal) -> Tensor:
    """The three terms written out."""
    total = F.cross_entropy(net(points), goal.labels, reduction="none")
    if goal.targets is not None:
        total = -F.cross_entropy(net(points), goal.targets, reduction="none")
    for layer in attack.layers or ():
        found = []
        for x in (points, images):
            first = net.first(x - 0.5)
            u = {"first": first, "activation": F.relu(first), "second": net.second(F.relu(first))}[layer]
            found.append(u.sign() * u.abs() ** attack.power)
        length = (found[0] - found[1]).flatten(1).norm(dim=1)
        total = total + attack.feature_weight * (length**2 if attack.distance == "squared" else length)
    padded = F.pad(points - images, (1, 1, 1, 1))
    local = sum(padded[..., i : i + 4, j : j + 4] for i in range(3) for j in range(3)) / 9
    assert isinstance(local, Tensor)
    smooth = local.abs().flatten(1)
    return total + attack.smoothness_weight * (smooth.sum(1) if attack.smoothness == "sum" else smooth.mean(1))


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("smoothness", ["sum", "mean"])
@pytest.mark.parametrize("distance", ["squared", "plain"])
@pytest.mark.parametrize("power", [0.5, 0.8, 1.0])
def test_the_gradient_is_the_slope_of_the_whole_objective(
    distance: Any,
    smoothness: Any,
    power: float,
    targeted: bool,
    make_victim: Make,
    images: Tensor,
    goal: Goal,
    small: Small,
) -> None:
    net = small()
    goal = Goal(goal.labels, (goal.labels + 1) % 4) if targeted else goal
    attack = TAP(
        layers=("first", "activation", "second"),
        distance=distance,
        smoothness=smoothness,
        power=power,
        loss="cross-entropy",
        feature_weight=0.7,
        smoothness_weight=1.3,
    )
    victim = make_victim(net, images)
    memory = begin(attack, victim, images, goal)
    generator = torch.Generator().manual_seed(1)
    points = images + 0.1 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    gradient, value, logits = attack.gradient(victim, points, goal, memory)
    with torch.no_grad():
        torch.testing.assert_close(value, objective(attack, net, points, images, goal), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits, net(points))
        way = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (objective(attack, net, points + h * way, images, goal) for h in (1e-7, -1e-7))
    torch.testing.assert_close((gradient * way).flatten(1).sum(1), (ahead - behind) / 2e-7, rtol=1e-3, atol=1e-4)


class Masked(nn.Module):
    """Zeros out half of the channels, as dropout would; unlike a ReLU's, such zeros do not stop a gradient of NaN."""

    def forward(self, features: Tensor) -> Tensor:
        return features * features.new_tensor([0, 1, 0, 1, 0])[:, None, None]


class Flat(nn.Module):
    """Constant features."""

    def forward(self, features: Tensor) -> Tensor:
        return features * 0


@pytest.mark.parametrize("distance", ["squared", "plain"])
@pytest.mark.parametrize("activation", [Masked(), Flat(), nn.ReLU(inplace=True)], ids=["mask", "flat", "relu"])
def test_zero_features_have_finite_gradients(
    activation: nn.Module, distance: Any, make_victim: Make, images: Tensor, goal: Goal, small: Small, perturb: Perturb
) -> None:
    net = small(activation)
    attack = TAP(layers=("first", "activation", "second"), distance=distance)
    victim = make_victim(net, images, drop=False)
    memory = begin(attack, victim, images, goal)
    for points in (images, (images + 0.05).clamp(0, 1)):
        gradient, _, _ = attack.gradient(victim, points, goal, memory)
        assert gradient.isfinite().all()
    perturb(attack, victim, images, goal, LINF)
    assert not victim.counts.broken.any()


@pytest.mark.parametrize("power", [0.5, 0.25, 1.0])
def test_the_power_keeps_signs_and_has_a_finite_slope_at_zero(power: float) -> None:
    values = torch.tensor([-4.0, -1e-3, 0.0, 1e-30, 0.25], dtype=torch.float64, requires_grad=True)
    raised = TAP(power=power).normalised(values)
    torch.testing.assert_close(raised, values.sign() * values.abs() ** power, atol=2 * 1e-12**power, rtol=0)
    (slope,) = torch.autograd.grad(raised.sum(), values)
    assert slope.isfinite().all()
    assert slope[2] == 0


def test_each_new_term_grows_where_it_counts_more(
    make_victim: Make, images: Tensor, goal: Goal, small: Small, perturb: Perturb
) -> None:
    net = small()

    def terms(**weights: float) -> tuple[float, float]:
        adversarial = perturb(
            TAP(layers=("second",), **weights), make_victim(net, images, drop=False), images, goal, LINF
        )  # type: ignore[arg-type]
        features = make_victim(net, adversarial).features(adversarial, ["second"])["second"]
        clean = make_victim(net, images).features(images, ["second"])["second"]
        local = F.avg_pool2d(adversarial - images, 3, 1, 1)
        return float((features - clean).norm()), float(local.abs().sum())

    plain = terms(feature_weight=0, smoothness_weight=0)
    assert terms(feature_weight=10, smoothness_weight=0)[0] > 1.05 * plain[0]
    assert terms(feature_weight=0, smoothness_weight=10)[1] > 1.05 * plain[1]


@pytest.mark.parametrize("drop", [True, False])
def test_the_mean_is_the_sum_over_the_number_of_values(
    drop: bool, make_victim: Make, images: Tensor, goal: Goal, small: Small, perturb: Perturb
) -> None:
    summed = TAP(smoothness_weight=0.25, smoothness="sum")
    averaged = TAP(smoothness_weight=0.25 * 48, smoothness="mean")
    first, second = (
        perturb(attack, make_victim(small(), images, drop=drop), images, goal, LINF) for attack in (summed, averaged)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, perturb(TAP(smoothness_weight=0), make_victim(small(), images), images, goal, LINF))


def test_smoothness_moves_energy_to_low_frequencies(make_victim: Make, linear: Callable[..., nn.Module]) -> None:
    """On a linear model the share of the lowest 4 x 4 of 16 x 16 grows with the weight."""
    generator = torch.Generator().manual_seed(0)
    model = linear(torch.randn(2, 256, generator=generator), torch.zeros(2))
    grey, goal, threat = torch.full((4, 1, 16, 16), 0.5), Goal(torch.zeros(4, dtype=torch.int64)), LINF
    shares = []
    for weight in (0.0, 0.5, 1.0, 2.0, 100.0):
        attack = TAP(loss="margin", feature_weight=0, smoothness_weight=weight, smoothness="sum", steps=20)
        victim = make_victim(model, grey, drop=False)
        moved = attack.perturb(victim, grey, goal, threat, Rng(0, torch.arange(4), (1, 16, 16))) - grey
        energy = dct2(moved).square()
        shares.append(float(energy[..., :4, :4].sum() / energy.sum()))
    assert shares == sorted(shares)
    assert shares[-1] > shares[0] + 0.3


def test_the_three_terms_are_logged(
    make_victim: Make, images: Tensor, goal: Goal, caplog: pytest.LogCaptureFixture, small: Small, perturb: Perturb
) -> None:
    net, attack = small(), TAP(layers=("second",), steps=3, loss="cross-entropy", smoothness_weight=2)
    with caplog.at_level(logging.DEBUG, logger="guard_plugins.attacks.tap"):
        adversarial = perturb(attack, make_victim(net, images, drop=False), images, goal, LINF)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "tap compares the layers second"
    clean = F.cross_entropy(net(images), goal.labels)
    assert lines[1] == f"tap: loss {clean:.4g}, features 0, smoothness 0, 8 images"
    assert len(lines) == 4
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="guard_plugins.attacks.tap"):
        victim = make_victim(net, images)
        _, loss, _ = attack.gradient(victim, adversarial, goal, begin(attack, victim, images, goal))
    words = caplog.records[-1].getMessage().replace(",", "").split()
    parts = [float(words[place]) for place in (2, 4, 6)]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(float(loss.mean()), rel=1e-3)
    local = F.avg_pool2d(adversarial - images, 3, 1, 1).abs().flatten(1).sum(1)
    assert parts[2] == pytest.approx(2 * float(local.mean()), rel=1e-3)


@pytest.mark.parametrize(
    "given", [{"power": 0}, {"power": 1.5}, {"feature_weight": -1}, {"smoothness_weight": math.nan}]
)
def test_parameters_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(given))):
        TAP(**given)


def test_the_papers_weights_are_a_preset(registry: guard.Registry) -> None:
    preset = registry.create("attack", "tap-paper")
    assert (preset.feature_weight, preset.power, preset.smoothness_weight) == (0.05, 0.5, 1000)
    assert (preset.distance, preset.smoothness, preset.steps, preset.step_size) == ("plain", "sum", 10, None)
