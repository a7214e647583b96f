"""The door to the model: what it allows, the gradients behind it, and what it puts back."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from guard import ContractError, Goal, InputError, Victim, held
from guard.losses import cross_entropy, margin

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]


@pytest.fixture
def goal() -> Goal:
    return Goal(torch.arange(8) % 4)


def test_gradient_is_the_gradient_of_each_images_own_loss(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    gradient, loss, logits = make_victim(curved, images).gradient(images, goal, margin)
    leaf = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(margin(curved(leaf), goal).sum(), leaf)
    assert torch.equal(gradient, expected)
    torch.testing.assert_close(logits, curved(images).detach())
    torch.testing.assert_close(loss, margin(curved(images), goal).detach())
    assert [part.requires_grad for part in (gradient, loss, logits)] == [False] * 3


def test_jacobian_equals_autograd_and_costs_c_backwards(make_victim: Make, curved: nn.Module, images: Tensor) -> None:
    victim = make_victim(curved, images)
    classes = torch.stack([torch.arange(8) % 4, (torch.arange(8) + 1) % 4, (torch.arange(8) + 3) % 4], 1)
    rows, logits = victim.jacobian(images, classes)
    assert rows.shape == (8, 3, 3, 4, 4)
    for image in range(8):
        whole = torch.autograd.functional.jacobian(lambda x: curved(x[None])[0], images[image])
        torch.testing.assert_close(rows[image], whole[classes[image]])
    torch.testing.assert_close(logits, curved(images).detach())
    assert victim.counts.forwards.tolist() == [1] * 8
    assert victim.counts.backwards.tolist() == [3] * 8


@pytest.mark.parametrize(
    ("access", "allowed"),
    [
        ("transfer", set()),
        ("labels", {"labels"}),
        ("logits", {"labels", "logits"}),
        ("gradients", {"labels", "logits", "gradient", "jacobian", "module"}),
    ],
)
def test_access_is_enforced(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal, access: str, allowed: set[str]
) -> None:
    victim = make_victim(curved, images, access=access)
    asks: dict[str, Callable[[], object]] = {
        "labels": lambda: victim.labels(images),
        "logits": lambda: victim.logits(images),
        "gradient": lambda: victim.gradient(images, goal),
        "jacobian": lambda: victim.jacobian(images, goal.labels[:, None]),
        "module": lambda: victim.module,
    }
    for name, ask in asks.items():
        if name in allowed:
            ask()
        else:
            with pytest.raises(ContractError, match=f"declares access = '{access}' and asked the victim for"):
                ask()
    assert victim.counts.forwards.tolist() == [len(allowed - {"module"})] * 8


def test_held_puts_a_model_back_also_after_an_exception() -> None:
    with torch.random.fork_rng():  # initial weights
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.Flatten()))
    model[0].bias.requires_grad_(False)
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def state() -> list[bool]:
        return [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]

    kept = state()

    def fail() -> None:
        with held(model):
            assert state() == [False] * len(kept)
            model(torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert state() == kept
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_features_are_of_the_named_layer_before_a_later_in_place_activation(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    seen = {}

    def loss(logits: Tensor, goal: Goal, features: dict[str, Tensor]) -> Tensor:
        seen.update(features)
        return features["hidden"].square().sum(1)

    model = nn.Sequential()
    model.add_module("hidden", curved.get_submodule("hidden"))
    model.add_module("activation", nn.ReLU(inplace=True))
    model.add_module("out", curved.get_submodule("out"))
    victim = make_victim(model, images)
    gradient, values, _ = victim.gradient(images, goal, loss, layers=["hidden"])
    hidden = curved.get_submodule("hidden")
    torch.testing.assert_close(seen["hidden"], hidden(images))
    assert (seen["hidden"] < 0).any()
    leaf = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(hidden(leaf).square().sum(), leaf)
    torch.testing.assert_close(gradient, expected)
    assert values.shape == (8,)
    assert victim.counts.forwards.tolist() == [1] * 8
    assert not any(module._forward_hooks for module in model.modules())


def test_an_unknown_layer_is_named_with_the_nearest(make_victim: Make, curved: nn.Module, images: Tensor) -> None:
    with pytest.raises(InputError) as caught:
        make_victim(curved, images).gradient(images, Goal(torch.zeros(8, dtype=torch.int64)), layers=["hiden"])
    assert str(caught.value) == "the model has no layer 'hiden'. Did you mean 'hidden'?"


def test_through_is_the_same_door_with_a_map_in_front(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    victim = make_victim(curved, images)
    mapped = victim.through(lambda x, origin: origin + 3 * (x - origin) ** 2, images)
    points = images + 0.1
    gradient, _, logits = mapped.gradient(points, goal)
    torch.testing.assert_close(logits, curved(images + 0.03).detach())
    inner, _, _ = victim.gradient(images + 0.03, goal)
    torch.testing.assert_close(gradient, inner * 0.6)
    torch.testing.assert_close(mapped.logits(points.repeat_interleave(2, 0))[0::2], logits)
    twice = mapped.through(lambda x, origin: x / 2, images)  # the latest map comes first
    torch.testing.assert_close(twice.logits(2 * points), logits)
    assert victim.counts.forwards.tolist() == [5] * 8
    assert victim.counts.backwards.tolist() == [2] * 8
    some = torch.tensor([5, 0])
    torch.testing.assert_close(mapped[some].logits(points[some]), logits[some])


def test_module_counts_each_forward_and_each_backward_once(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    victim = make_victim(curved, images)
    leaf = images.clone().requires_grad_()
    for _ in range(3):  # the same leaf each time, as L-BFGS does
        leaf.grad = None
        cross_entropy(victim.module(leaf), goal).sum().backward()
    expected, _, _ = make_victim(curved, images).gradient(images, goal)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected)
    cross_entropy(victim.module(torch.tanh(leaf)), goal).sum().backward()
    victim.module(images)
    with torch.no_grad():
        victim.module(leaf)
    assert victim.counts.forwards.tolist() == [6] * 8
    assert victim.counts.backwards.tolist() == [4] * 8
    assert list(victim.module.parameters()) == []


def test_a_gradient_with_nan_or_infinity_is_remembered_for_its_image(make_victim: Make, images: Tensor) -> None:
    class Root(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return (points.flatten(1)[:, :2] - 0.5).sqrt()  # slope infinite at 0.5, NaN below

    points = torch.full_like(images, 0.75)
    points[2, 0, 0, 0] = 0.5
    points[5, 0, 0, 1] = 0.25
    victim = make_victim(Root(), images)
    victim.gradient(points, Goal(torch.zeros(8, dtype=torch.int64)))
    assert victim.counts.broken.tolist() == [False, False, True, False, False, True, False, False]
    twice = make_victim(Root(), images)  # two rows per image: one broken row is enough, wherever it stands
    rows = torch.full_like(images, 0.75).repeat_interleave(2, 0)
    rows[0, 0, 0, 0] = rows[7, 0, 0, 0] = 0.25
    twice.gradient(rows, Goal(torch.zeros(16, dtype=torch.int64)))
    assert twice.counts.broken.tolist() == [True, False, False, True, False, False, False, False]


def test_large_finite_gradients_are_not_called_broken(make_victim: Make, linear: Callable[..., nn.Module]) -> None:
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    victim = make_victim(linear(torch.full((2, 16), 2e38), torch.zeros(2)), images)
    victim.gradient(images, Goal(torch.zeros(2, dtype=torch.int64)), lambda z, goal: z[:, 0])
    assert not victim.counts.broken.any()


@pytest.mark.parametrize("ask", ["gradient", "jacobian"])
def test_a_model_without_a_gradient_is_named(make_victim: Make, images: Tensor, ask: str) -> None:
    class Steps(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return points.detach().flatten(1)

    victim, zeros = make_victim(Steps(), images), torch.zeros(8, dtype=torch.int64)
    with pytest.raises(ContractError, match="gives no gradient"):
        victim.gradient(images, Goal(zeros)) if ask == "gradient" else victim.jacobian(images, zeros[:, None])


def test_bf16_is_for_gradients_only_and_comes_back_as_float32(make_victim: Make) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4, 3, 2, 2, generator=generator)
    net = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 12, 3))
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=generator)
    goal = Goal(torch.zeros(4, dtype=torch.int64))
    coarse, exact = make_victim(net, points, bf16=True), make_victim(net, points)
    gradient, loss, logits = coarse.gradient(points, goal)
    assert {gradient.dtype, loss.dtype, logits.dtype} == {torch.float32}
    assert not torch.equal(logits, exact.logits(points))
    assert torch.equal(coarse.logits(points), exact.logits(points))
    torch.testing.assert_close(gradient, exact.gradient(points, goal)[0], rtol=0.05, atol=0.01)
