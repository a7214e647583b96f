"""Low-frequency: the bands, what stays inside them, both budgets, and noise of low frequencies."""

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from guard_plugins.attacks.bands import Band, mask
from guard_plugins.attacks.low_frequency import LowFrequency, LowFrequencyNoise
from torch import Tensor, nn

from guard import Goal, InputError, Registry, Rng, ThreatModel, Victim, dct2, idct2

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Perturb = Callable[..., Tensor]
Linear = Callable[..., nn.Module]
BANDS = ["low", "mid", "high", "random"]
INNER = [
    {"name": "fgsm"},
    {"name": "bim"},
    {"name": "mi-fgsm"},
    {"name": "pgd", "restarts": 2},
    {"name": "apgd", "steps": 12},
    {"name": "apgd", "steps": 5, "targets": 2},
    {"name": "fast-pgd"},
    {"name": "multi-targeted"},
]
EVERY = pytest.mark.parametrize("inner", INNER, ids=lambda spec: "-".join(map(str, spec.values())))
THREATS = [
    ThreatModel(norm="linf", epsilon=0.2),
    ThreatModel(norm="l2", epsilon=0.8),
    ThreatModel(norm="l1", epsilon=4),
]
EACH_NORM = pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
WIDE = ThreatModel(norm="linf", epsilon=1)


class Watched(nn.Module):
    """A model that notes every image it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        logits: Tensor = self.model(images)
        return logits


def rng_of(images: Tensor, seed: int = 0) -> Rng:
    return Rng(seed, torch.arange(len(images)), tuple(images.shape[1:]))


def grey(count: int, *shape: int) -> Tensor:
    return torch.full((count, *shape), 0.5, dtype=torch.float64)


def wave(row: int, column: int, *shape: int) -> Tensor:
    """A basis function of the DCT, (H, W)."""
    return idct2(torch.zeros(shape, dtype=torch.float64).index_put_((torch.tensor(row), torch.tensor(column)), one))


one = torch.ones((), dtype=torch.float64)


def random_linear(linear: Linear, *shape: int, classes: int = 3, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, math.prod(shape), generator=generator, dtype=torch.float64)
    return linear(weight, -0.5 * weight.sum(1) + torch.arange(classes, 0, -1))  # class 0 on grey images


def leak(perturbation: Tensor, kept: Tensor) -> float:
    """The largest share of an image's energy that lies outside what is kept."""
    energy = dct2(perturbation).square()
    assert (energy.sum((1, 2, 3)) > 0).all()
    return ((energy * (1 - kept)).sum((1, 2, 3)) / energy.sum((1, 2, 3))).max().item()


@EVERY
@pytest.mark.parametrize("band", BANDS)
def test_nothing_that_is_asked_about_leaves_its_band(
    band: str, inner: dict[str, Any], registry: Registry, linear: Linear, make_victim: Make, perturb_inside: Perturb
) -> None:
    """Where nothing is clipped: on grey images, of a perturbation so short that its masked part stays short."""
    images, model = grey(4, 3, 6, 7), Watched(random_linear(linear, 3, 6, 7))
    made = registry.create(
        "attack", {"name": "low-frequency", "attack": inner, "band": band, "dimension": 3, "parameter_epsilon": 0.02}
    )
    goal, kept = Goal(torch.zeros(4, dtype=torch.int64)), mask(made.band, 3, images, rng_of(images))
    adversarial = perturb_inside(made, make_victim(model, images, drop=False), images, goal, WIDE)
    assert 1e-3 < (adversarial - images).abs().max() < 0.3
    assert leak(adversarial - images, kept) < 1e-12
    assert all(((dct2(seen - images) * (1 - kept)).abs() < 1e-12).all() for seen in model.seen)
    assert leak(adversarial - images, 1 - kept) > 0.99


@EVERY
@EACH_NORM
def test_the_whole_spectrum_is_the_attack_itself(
    threat: ThreatModel,
    inner: dict[str, Any],
    registry: Registry,
    curved: nn.Module,
    make_victim: Make,
    perturb_inside: Perturb,
) -> None:
    images = grey(6, 3, 4, 4)
    labels = curved(images).argmax(1)
    goal = Goal(labels, (labels + 1) % 4)
    plain = registry.create("attack", inner)
    made = LowFrequency(attack=plain, dimension=4)
    victims = [make_victim(curved, images) for _ in range(2)]
    small = ThreatModel(norm=threat.norm, epsilon=threat.epsilon / 8)
    results = [
        perturb_inside(each, victim, images, goal, small) for each, victim in zip((plain, made), victims, strict=True)
    ]
    torch.testing.assert_close(results[1], results[0], atol=1e-9, rtol=0)
    assert (results[0] - images).abs().max() > 1e-3
    assert torch.equal(victims[0].counts.forwards, victims[1].counts.forwards)
    assert torch.equal(victims[0].counts.backwards, victims[1].counts.backwards)


@EVERY
@EACH_NORM
def test_what_it_returns_is_what_the_victim_fell_for(
    threat: ThreatModel,
    inner: dict[str, Any],
    registry: Registry,
    curved: nn.Module,
    images: Tensor,
    make_victim: Make,
    perturb_inside: Perturb,
) -> None:
    """Images with values at 0 and 1, so that all is clipped; the victim keeps its counts."""
    goal, model = Goal(curved(images).argmax(1)), Watched(curved)
    made = registry.create("attack", {"name": "low-frequency", "attack": inner, "dimension": 2})
    victim = make_victim(model, images)
    adversarial = perturb_inside(made, victim, images, goal, threat)
    assert goal.reached(curved(adversarial)).sum() >= 2
    seen = torch.cat(model.seen)
    assert victim.counts.forwards.sum() == len(seen)
    fell = [row for row in range(8) if goal[torch.tensor([row])].reached(curved(adversarial[row : row + 1]))]
    asked = [row for row in fell if (seen == adversarial[row]).flatten(1).all(1).any()]
    assert inner["name"] == "fgsm" or len(asked) >= len(fell) - 2, "a last point may be one that nobody asked about"


@pytest.mark.parametrize(("row", "column", "own"), [(1, 2, "low"), (3, 3, "mid"), (6, 7, "high")])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_model_of_one_frequency_falls_to_its_band_alone(
    row: int, column: int, own: Band, norm: Any, linear: Linear, make_victim: Make, perturb_inside: Perturb
) -> None:
    """For l2 in closed form: all of the ball along the model's own direction."""
    images, direction = grey(2, 1, 8, 8), wave(row, column, 8, 8).flatten()
    bias = torch.tensor([0.2, 0.0], dtype=torch.float64)
    model = linear(torch.stack([-direction, direction]), bias)
    goal, epsilon = Goal(torch.zeros(2, dtype=torch.int64)), {"linf": 0.1, "l2": 0.3, "l1": 6.0}[norm]
    threat = ThreatModel(norm=norm, epsilon=epsilon)

    def gain(made: LowFrequency) -> float:
        adversarial = perturb_inside(made, make_victim(model, images, drop=False), images, goal, threat)
        with torch.no_grad():
            return float((goal.margin(model(images)) - goal.margin(model(adversarial))).mean())

    for tried in ("low", "mid", "high"):
        band, short = cast(Band, tried), epsilon / 50  # so short that nothing is clipped
        assert (abs(gain(LowFrequency(band=band, dimension=3, parameter_epsilon=short))) > 1e-9) == (tried == own)
    found = gain(LowFrequency(band=own, dimension=3))
    assert found > 0.2, "the goal is reached"
    if norm == "l2":
        assert found == pytest.approx(2 * epsilon, abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.04, 0.06, 1])
def test_the_parameter_may_be_bounded_instead_of_the_image(
    epsilon: float, linear: Linear, make_victim: Make, perturb_inside: Perturb
) -> None:
    """The masked part then exceeds the parameter's bound, up to where the threat ends."""
    images, model = grey(8, 1, 8, 8), random_linear(linear, 1, 8, 8)
    goal, threat = Goal(torch.zeros(8, dtype=torch.int64)), ThreatModel(norm="linf", epsilon=epsilon)
    free = LowFrequency(parameter_epsilon=0.04, band="random", dimension=4)
    adversarial = perturb_inside(free, make_victim(model, images, drop=False), images, goal, threat)
    distance = threat.distance(adversarial, images)
    if epsilon == 1:
        assert (distance > 0.065).all(), "half as far again"
    else:
        assert distance.tolist() == pytest.approx([epsilon] * 8)
    bounded = LowFrequency(band="random", dimension=4)
    within = perturb_inside(bounded, make_victim(model, images, drop=False), images, goal, threat)
    if epsilon == 0.04:
        torch.testing.assert_close(within, adversarial)


@EACH_NORM
def test_noise_is_low_fills_the_ball_and_keeps_its_first_success(
    threat: ThreatModel, linear: Linear, make_victim: Make, perturb_inside: Perturb
) -> None:
    images, model = grey(16, 3, 8, 6), Watched(random_linear(linear, 3, 8, 6))
    made, goal = LowFrequencyNoise(draws=5, dimension=3), Goal(torch.zeros(16, dtype=torch.int64))
    victim = make_victim(model, images, access="logits")
    adversarial = perturb_inside(made, victim, images, goal, threat)
    for seen in (*model.seen, adversarial):
        clean = images[: len(seen)]
        assert leak(seen - clean, mask("low", 3, clean, rng_of(clean))) < 1e-12
        assert threat.distance(seen, clean).tolist() == pytest.approx([threat.epsilon] * len(seen))
    coefficients = dct2(model.seen[0] - images)[..., :3, :3].flatten(1)
    unit = coefficients / coefficients.std(1, keepdim=True)
    assert (unit.abs().mean() - math.sqrt(2 / math.pi)).abs() < 0.05, "normal: 432 draws, deviation 0.03"
    reached, counts = goal.reached(model(adversarial)), victim.counts.forwards
    assert (counts[~reached] == 5).all()
    assert len(counts.unique()) > 1


def test_noise_needs_a_bound(curved: nn.Module, images: Tensor, make_victim: Make, perturb_inside: Perturb) -> None:
    threat = ThreatModel(norm="l2", epsilon=math.inf)
    with pytest.raises(InputError, match="'low-frequency-noise' fills the ball"):
        perturb_inside(
            LowFrequencyNoise(), make_victim(curved, images), images, Goal(torch.zeros(8, dtype=torch.int64)), threat
        )
