"""The door to the model: what it counts, enforces, bridges, averages, and puts back."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from guard import ContractError, Defense, Goal, InputError, Rng, Victim, held
from guard.losses import cross_entropy, margin

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]


class Round(Defense):
    """Not differentiable; the identity stands in."""

    name = "round"
    differentiable = False

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return (images * 4).round() / 4


class Double(Round):
    """Its stand-in has slope 2."""

    name = "double"

    def surrogate(self, images: Tensor, rng: Rng) -> Tensor:
        return 2 * images


class Jitter(Defense):
    """Adds keyed noise; differentiable."""

    name = "jitter"
    randomized = True

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images * (1 + rng.uniform(-0.5, 0.5).to(images.dtype))


class CoarseJitter(Jitter):
    """Rounds too; its stand-in is the same draw without the rounding."""

    name = "coarse-jitter"
    differentiable = False

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return (super().preprocess(images, rng) * 8).round() / 8

    def surrogate(self, images: Tensor, rng: Rng) -> Tensor:
        return super().preprocess(images, rng)


@pytest.fixture
def goal() -> Goal:
    return Goal(torch.arange(8) % 4)


def test_queries_are_charged_to_the_image_that_asks(make_victim: Make, curved: nn.Module, images: Tensor) -> None:
    victim = make_victim(curved, images)
    victim.logits(images)
    victim.labels(images.repeat_interleave(3, 0))
    part = victim[torch.tensor([5, 2])]
    part.logits(images[[5, 5, 2, 2]])
    part[torch.tensor([False, True])].logits(images[[2]])
    victim[torch.arange(8) == 0].gradient(images[:1], Goal(torch.tensor([0])))
    victim[torch.tensor([7, 7])].logits(images[[7, 7]])
    assert victim.counts.forwards.tolist() == [5, 4, 7, 4, 4, 6, 4, 6]
    assert victim.counts.backwards.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("rows", [7, 9, 12, 0])
def test_any_other_number_of_rows_is_the_attacks_error(
    make_victim: Make, curved: nn.Module, images: Tensor, rows: int
) -> None:
    with pytest.raises(ContractError, match=f"asked about {rows} points for 8 images; pass k rows per image"):
        make_victim(curved, images).logits(images[:1].expand(rows, -1, -1, -1))


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


def test_bpda_goes_forward_through_preprocess_and_backward_through_the_surrogate(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    processed = Round().preprocess(images, None).requires_grad_()  # type: ignore[arg-type]
    (at_processed,) = torch.autograd.grad(cross_entropy(curved(processed), goal).sum(), processed)
    for stage, slope in ((Round(), 1), (Double(), 2)):
        victim = make_victim(curved, images, stages=[stage])
        gradient, _, logits = victim.gradient(images, goal)
        torch.testing.assert_close(gradient, slope * at_processed)
        torch.testing.assert_close(logits, curved(processed).detach())
        assert torch.equal(victim.logits(images), curved(processed).detach())


def test_bridges_compose_stage_by_stage(make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal) -> None:
    """Round after Double: forward round(round(x)), backward 2 through the first and 1 through the second."""
    gradient, _, _ = make_victim(curved, images, stages=[Double(), Round()]).gradient(images, goal)
    alone, _, _ = make_victim(curved, images, stages=[Round()]).gradient(images, goal)
    torch.testing.assert_close(gradient, 2 * alone)


def test_surrogate_and_preprocess_see_the_same_draw(make_rng: Callable[..., Rng], images: Tensor) -> None:
    class Sum(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return points.flatten(1)[:, :4]

    victim = Victim(Sum(), images, make_rng(images), stages=[CoarseJitter()])
    gradient, _, logits = victim.gradient(images, Goal(torch.zeros(8, dtype=torch.int64)), lambda z, goal: z.sum(1))
    scale = gradient.flatten(1)[:, :4]  # the surrogate's factor, of this draw
    torch.testing.assert_close(logits, (images.flatten(1)[:, :4] * scale * 8).round() / 8)


def test_eot_is_the_mean_over_draws_and_counts_each(
    make_victim: Make, make_rng: Callable[..., Rng], curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    victim = make_victim(curved, images, stages=[Jitter()], eot=5)
    gradient, loss, logits = victim.gradient(images, goal)
    single = make_victim(curved, images, stages=[Jitter()])
    parts = [single.gradient(images, goal) for _ in range(5)]
    for averaged, place in ((gradient, 0), (loss, 1), (logits, 2)):
        torch.testing.assert_close(averaged, torch.stack([part[place] for part in parts]).mean(0))
    assert not torch.equal(parts[0][0], parts[1][0])
    assert victim.counts.forwards.tolist() == victim.counts.backwards.tolist() == [5] * 8


def test_eot_averages_logits_and_jacobians_too(
    make_victim: Make, make_rng: Callable[..., Rng], curved: nn.Module, images: Tensor
) -> None:
    single = make_victim(curved, images, stages=[Jitter()])
    wanted = torch.stack([single.logits(images) for _ in range(5)]).mean(0)
    victim = make_victim(curved, images, stages=[Jitter()], eot=5)
    torch.testing.assert_close(victim.logits(images), wanted)
    assert victim.counts.forwards.tolist() == [5] * 8
    classes = torch.tensor([[0, 1]]).expand(8, 2)
    single = make_victim(curved, images, stages=[Jitter()])
    wanted = torch.stack([single.jacobian(images, classes)[0] for _ in range(5)]).mean(0)
    victim = make_victim(curved, images, stages=[Jitter()], eot=5)
    torch.testing.assert_close(victim.jacobian(images, classes)[0], wanted)
    assert victim.counts.backwards.tolist() == [10] * 8


def test_a_query_of_a_budget_is_one_draw(make_victim: Make, curved: nn.Module, images: Tensor) -> None:
    victim = make_victim(curved, images, stages=[Jitter()], eot=5, max_queries=3)
    victim.logits(images)
    assert victim.counts.forwards.tolist() == [1] * 8


def test_a_randomized_stage_draws_by_image_and_not_by_place(
    make_victim: Make, curved: nn.Module, images: Tensor
) -> None:
    whole = make_victim(curved, images, stages=[Jitter()])
    first, second = whole.logits(images), whole.logits(images)
    assert not torch.equal(first, second)
    order = torch.tensor([6, 1])
    part = make_victim(curved, images[order], index=order, stages=[Jitter()])
    assert torch.equal(part.logits(images[order]), first[order])
    repeated = make_victim(curved, images, stages=[Jitter()]).logits(images.repeat_interleave(2, 0))
    assert torch.equal(repeated[0::2], first)
    assert torch.equal(repeated[1::2], second)


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


def test_module_is_the_bridged_victim(make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal) -> None:
    leaf = images.clone().requires_grad_()
    logits = make_victim(curved, images, stages=[Double()]).module(leaf)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, goal).sum(), leaf)
    expected, _, _ = make_victim(curved, images, stages=[Double()]).gradient(images, goal)
    torch.testing.assert_close(gradient, expected)


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


class Optimist(nn.Module):
    """Answers class 1 for everything."""

    def forward(self, points: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0], dtype=points.dtype).repeat(len(points), 1) + 0 * points.sum()


class Bright(nn.Module):
    """Class 1 where the mean exceeds a half."""

    def forward(self, points: Tensor) -> Tensor:
        mean = points.flatten(1).mean(1)
        return torch.stack([1 - mean, mean], 1)


def test_what_a_faster_execution_claims_is_confirmed_by_the_model(make_victim: Make) -> None:
    points = torch.tensor([0.2, 0.9, 0.4, 0.7]).view(4, 1, 1, 1)
    goal = Goal(torch.tensor([0, 0, 0, 1]))
    victim = make_victim(Bright(), points, search=Optimist())
    logits = victim.logits(points)
    assert logits.argmax(1).tolist() == [1, 1, 1, 1]  # the search is answered by the other execution
    assert victim.reached(points, goal, logits).tolist() == [False, True, False, False]
    assert victim.counts.forwards.tolist() == [2, 2, 2, 1]  # only claims are asked about again
    some = torch.tensor([2, 1])
    twice = points[some].repeat_interleave(2, 0)
    both = Goal(goal.labels[some].repeat_interleave(2))
    assert victim[some].reached(twice, both, logits[:4].flip(1).flip(1)).tolist() == [False, False, True, True]
    exact = make_victim(Bright(), points)
    exact.reached(points, goal, exact.logits(points))
    assert exact.counts.forwards.tolist() == [1, 1, 1, 1]  # the model's own word needs no confirmation


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


def test_a_query_budget_is_counted_by_the_victim_and_cannot_be_exceeded(make_victim: Make) -> None:
    points, goal = torch.full((3, 1, 2, 2), 0.3), Goal(torch.zeros(3, dtype=torch.int64))
    assert make_victim(Bright(), points).remaining is None
    victim = make_victim(Bright(), points, max_queries=4)
    victim.logits(points)
    victim[torch.tensor([1])].gradient(points[1:2], goal[torch.tensor([1])])
    assert victim.remaining is not None
    assert victim.remaining.tolist() == [3, 2, 3]
    assert victim[torch.tensor([2, 1])].remaining.tolist() == [3, 2]  # type: ignore[union-attr]
    victim.logits(points.repeat_interleave(2, 0))
    with pytest.raises(ContractError, match="more often than max_queries = 4 allows"):
        victim.logits(points)
