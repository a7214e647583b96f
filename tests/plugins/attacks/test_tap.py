"""TAP: its objective's gradient, where that is finite, what its terms do, and which layers it takes."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guard_plugins.attacks.gradient_sign import BIM, FGSM
from guard_plugins.attacks.tap import TAP, PaperTAP, default_layers
from torch import Tensor, nn

import guard
from guard import Goal, InputError, Rng, ThreatModel, Victim, dct2
from guard.layers import shapes

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
LINF = ThreatModel(norm="linf", epsilon=0.1)


class Small(nn.Module):
    """Two convolutions and a linear layer in float64, for images (3, 4, 4); the activation is in place."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.utils.skip_init(nn.Conv2d, 3, 5, 3, padding=1).double()
        self.activation = activation or nn.ReLU(inplace=True)
        self.second = nn.utils.skip_init(nn.Conv2d, 5, 6, 3, padding=1, stride=2).double()
        self.out = nn.utils.skip_init(nn.Linear, 6, 4).double()
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.out(self.second(self.activation(self.first(images - 0.5))).mean((2, 3)))
        return logits


@pytest.fixture
def goal(images: Tensor) -> Goal:
    return Goal(Small()(images).argmax(1))


def perturb(attack: guard.Attack, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel = LINF) -> Tensor:
    return attack.perturb(victim, images, goal, threat, Rng(0, torch.arange(len(images)), (3, 4, 4)))


def begin(attack: TAP, victim: Victim, images: Tensor, goal: Goal) -> dict[str, Tensor]:
    _, memory = attack.start(victim, images, goal, LINF, Rng(0, torch.arange(len(images)), (3, 4, 4)), 0)
    return memory


def objective(attack: TAP, net: Small, points: Tensor, images: Tensor, goal: Goal) -> Tensor:
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
    distance: Any, smoothness: Any, power: float, targeted: bool, make_victim: Make, images: Tensor, goal: Goal
) -> None:
    net = Small()
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
    activation: nn.Module, distance: Any, make_victim: Make, images: Tensor, goal: Goal
) -> None:
    net = Small(activation)
    attack = TAP(layers=("first", "activation", "second"), distance=distance)
    victim = make_victim(net, images, drop=False)
    memory = begin(attack, victim, images, goal)
    for points in (images, (images + 0.05).clamp(0, 1)):
        gradient, _, _ = attack.gradient(victim, points, goal, memory)
        assert gradient.isfinite().all()
    perturb(attack, victim, images, goal)
    assert not victim.counts.broken.any()


@pytest.mark.parametrize("power", [0.5, 0.25, 1.0])
def test_the_power_keeps_signs_and_has_a_finite_slope_at_zero(power: float) -> None:
    values = torch.tensor([-4.0, -1e-3, 0.0, 1e-30, 0.25], dtype=torch.float64, requires_grad=True)
    raised = TAP(power=power).normalised(values)
    torch.testing.assert_close(raised, values.sign() * values.abs() ** power, atol=2 * 1e-12**power, rtol=0)
    (slope,) = torch.autograd.grad(raised.sum(), values)
    assert slope.isfinite().all()
    assert slope[2] == 0


@pytest.mark.parametrize("attack", [TAP(steps=1), PaperTAP(steps=1), TAP(steps=1, smoothness_weight=1e3)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_first_step_is_fgsms(attack: TAP, norm: Any, make_victim: Make, images: Tensor, goal: Goal) -> None:
    threat = ThreatModel(norm=norm, epsilon=0.1)
    victim = make_victim(Small(), images, drop=False)
    adversarial = perturb(attack, victim, images, goal, threat)
    assert torch.equal(adversarial, perturb(FGSM(loss=attack.loss), victim, images, goal, threat))
    assert not torch.equal(adversarial, images)


def test_without_the_two_new_terms_it_is_bim(make_victim: Make, images: Tensor, goal: Goal) -> None:
    victim = make_victim(Small(), images, drop=False)
    plain = TAP(feature_weight=0, smoothness_weight=0)
    assert torch.equal(perturb(plain, victim, images, goal), perturb(BIM(loss="margin"), victim, images, goal))
    assert victim.counts.forwards.tolist() == [20] * 8  # no clean features are asked for
    assert plain.cost(4) == BIM().cost(4)


def test_each_new_term_grows_where_it_counts_more(make_victim: Make, images: Tensor, goal: Goal) -> None:
    net = Small()

    def terms(**weights: float) -> tuple[float, float]:
        adversarial = perturb(TAP(layers=("second",), **weights), make_victim(net, images, drop=False), images, goal)  # type: ignore[arg-type]
        features = make_victim(net, adversarial).features(adversarial, ["second"])["second"]
        clean = make_victim(net, images).features(images, ["second"])["second"]
        local = F.avg_pool2d(adversarial - images, 3, 1, 1)
        return float((features - clean).norm()), float(local.abs().sum())

    plain = terms(feature_weight=0, smoothness_weight=0)
    assert terms(feature_weight=10, smoothness_weight=0)[0] > 1.05 * plain[0]
    assert terms(feature_weight=0, smoothness_weight=10)[1] > 1.05 * plain[1]


@pytest.mark.parametrize("drop", [True, False])
def test_the_mean_is_the_sum_over_the_number_of_values(
    drop: bool, make_victim: Make, images: Tensor, goal: Goal
) -> None:
    summed = TAP(smoothness_weight=0.25, smoothness="sum")
    averaged = TAP(smoothness_weight=0.25 * 48, smoothness="mean")
    first, second = (
        perturb(attack, make_victim(Small(), images, drop=drop), images, goal) for attack in (summed, averaged)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, perturb(TAP(smoothness_weight=0), make_victim(Small(), images), images, goal))


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


def test_features_are_compared_with_those_of_the_clean_image_and_not_of_the_first_point(
    make_victim: Make, images: Tensor, goal: Goal
) -> None:
    """A restart starts elsewhere."""
    net, attack = Small(), TAP(layers=("second",))
    victim = make_victim(net, images, drop=False)
    rng = Rng(0, torch.arange(8), (3, 4, 4))
    point, memory = attack.start(victim, images, goal, LINF, rng, 1)
    assert not torch.equal(point, images)
    expected = attack.normalised(net.second(F.relu(net.first(images - 0.5))).detach())
    torch.testing.assert_close(memory["layers.second"], expected)


def test_a_features_row_follows_its_image_when_others_are_dropped(
    make_victim: Make, images: Tensor, goal: Goal
) -> None:
    goal.labels[::2] = (goal.labels[::2] + 1) % 4  # these fall at once
    attack = TAP(layers=("first", "second"), feature_weight=5, steps=4)
    together = perturb(attack, make_victim(Small(), images), images, goal)
    for row in range(8):
        rows = torch.tensor([row])
        alone = perturb(attack, make_victim(Small(), images[rows], index=rows), images[rows], goal[rows])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("budget", [1, 2, 5, 7, 9])
def test_a_query_budget_holds_through_restarts(
    drop: bool, budget: int, make_victim: Make, images: Tensor, goal: Goal
) -> None:
    victim = make_victim(Small(), images, max_queries=budget, drop=drop)
    victim[torch.tensor([4])].logits(images[4:5])  # one has less
    perturb(TAP(steps=3, restarts=3), victim, images, goal, ThreatModel(norm="linf", epsilon=1e-3))
    assert victim.counts.forwards.tolist() == [budget] * 8


def test_it_works_through_a_transform(make_victim: Make, images: Tensor, goal: Goal) -> None:
    """Features are those of the transform; smoothness is the parameter's own."""
    net, grey = Small(), torch.full_like(images, 0.5)
    victim = make_victim(net, images, drop=False)

    def shifted(z: Tensor, origin: Tensor) -> Tensor:
        return origin + (z - 0.5)

    inside = 0.2 + 0.6 * images
    attack = TAP(loss="cross-entropy", smoothness_weight=0.1)
    direct = perturb(attack, make_victim(net, inside, drop=False), inside, goal)
    through = perturb(attack, victim.through(shifted, inside), grey, goal)
    torch.testing.assert_close(through - grey, direct - inside, atol=1e-12, rtol=0)


def test_the_three_terms_are_logged(
    make_victim: Make, images: Tensor, goal: Goal, caplog: pytest.LogCaptureFixture
) -> None:
    net, attack = Small(), TAP(layers=("second",), steps=3, loss="cross-entropy", smoothness_weight=2)
    with caplog.at_level(logging.DEBUG, logger="guard_plugins.attacks.tap"):
        adversarial = perturb(attack, make_victim(net, images, drop=False), images, goal)
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


def test_a_model_without_modules_has_no_features(make_victim: Make, images: Tensor, goal: Goal) -> None:
    class Bare(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :4]

    with pytest.raises(InputError, match=r"^attack 'tap' finds no layers to compare: .* or give feature_weight: 0$"):
        perturb(TAP(), make_victim(Bare(), images), images, goal)
    perturb(TAP(feature_weight=0), make_victim(Bare(), images), images, goal)


def test_an_unknown_layer_is_named_with_the_nearest(make_victim: Make, images: Tensor, goal: Goal) -> None:
    with pytest.raises(InputError) as caught:
        perturb(TAP(layers=("secnd",)), make_victim(guard.model(Small()), images), images, goal)
    assert str(caught.value) == "the model has no layer 'secnd'. Did you mean 'second'?"


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


class Block(nn.Module):
    """Residual; the first convolution strides."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.utils.skip_init(nn.Conv2d, inner, outer, 3, stride, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.utils.skip_init(nn.Conv2d, outer, outer, 3, 1, 1)
        self.short = nn.utils.skip_init(nn.Conv2d, inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.relu(self.conv2(self.relu(self.conv1(x))) + self.short(x))
        return total


def conv(inner: int, outer: int, stride: int) -> nn.Module:
    return nn.utils.skip_init(nn.Conv2d, inner, outer, 3, stride, 1)


class Center(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images - 0.5


class Tokens(nn.Module):
    """Patches, then as many equal blocks as a small transformer has."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.utils.skip_init(nn.Conv2d, 3, 8, 4, 4)
        self.blocks = nn.Sequential(*(nn.utils.skip_init(nn.Linear, 8, 8) for _ in range(7)))
        self.head = nn.utils.skip_init(nn.Linear, 8, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.patches(images).flatten(2).transpose(1, 2)).mean(1))
        return logits


def linear_layer(inner: int, outer: int) -> nn.Module:
    return nn.utils.skip_init(nn.Linear, inner, outer)


PLAIN = nn.Sequential(
    *(Center(), conv(3, 4, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2), conv(4, 6, 1), nn.ReLU(inplace=True)),
    *(nn.MaxPool2d(2), conv(6, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear_layer(8, 4)),
)
RESIDUAL = nn.Sequential(
    *(Center(), conv(3, 4, 2), nn.ReLU(), nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))),
    *(nn.Sequential(Block(4, 8, 2), Block(8, 8, 1)), nn.Sequential(Block(8, 8, 2)), nn.AdaptiveAvgPool2d(1)),
    *(nn.Flatten(), linear_layer(8, 4)),
)
STRIDED = nn.Sequential(*(nn.Sequential(conv(4 if i else 3, 4, 1), conv(4, 4, 2)) for i in range(3)))
PERCEPTRON = nn.Sequential(
    *(nn.Flatten(), linear_layer(3072, 9), nn.ReLU(), linear_layer(9, 5), nn.ReLU(), linear_layer(5, 4))
)


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        pytest.param(PLAIN, ("2", "5", "8"), id="cnn"),
        pytest.param(RESIDUAL, ("3", "4", "5"), id="resnet"),
        pytest.param(STRIDED, ("0.0", "0", "1", "2"), id="stages-that-stride-at-their-end"),
        pytest.param(Tokens(), ("patches", "blocks.3", "blocks.5", "blocks"), id="transformer"),
        pytest.param(PERCEPTRON, ("1", "2", "3", "4"), id="perceptron"),
        pytest.param(nn.Sequential(nn.Flatten(), linear_layer(3072, 4)), (), id="linear"),
        pytest.param(Center(), (), id="nothing-learned"),
    ],
)
def test_layers_are_found_without_being_named(net: nn.Module, expected: tuple[str, ...]) -> None:
    assert default_layers(shapes(net.eval(), torch.zeros(2, 3, 32, 32))) == expected


def test_channels_may_come_last() -> None:
    sides = {"embed": 56, "stage1": 28, "stage2": 14, "stage3": 7}
    layers = {name: (side, side, 5376 // side) for name, side in sides.items()}
    assert default_layers(layers) == tuple(sides)
