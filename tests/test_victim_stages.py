"""The door to the model through a defense's stages: bridges, averages over draws, and what a draw depends on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from guard import Defense, Goal, Rng, Victim
from guard.losses import cross_entropy

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


def test_module_is_the_bridged_victim(make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal) -> None:
    leaf = images.clone().requires_grad_()
    logits = make_victim(curved, images, stages=[Double()]).module(leaf)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, goal).sum(), leaf)
    expected, _, _ = make_victim(curved, images, stages=[Double()]).gradient(images, goal)
    torch.testing.assert_close(gradient, expected)
