"""TRADES against its formula, written out, and the attack in it."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guard import Defense, Goal, InputError, Registry, Rng, ThreatModel, Victim

Make = Callable[..., Defense]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the rows of the sum of p log(p / q)."""
    return (p * (p / q).log()).sum(1).mean()


def crafted(model: nn.Module, images: Tensor, start: Tensor, steps: int, size: float) -> Tensor:
    """The inner maximization of the paper in linf at 0.1, in eval mode."""
    model = copy.deepcopy(model).eval()
    clean, point = model(images).softmax(1).detach(), start
    for _ in range(steps):
        leaf = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(kl(clean, model(leaf).softmax(1)), leaf)
        point = torch.minimum(torch.maximum(point + size * gradient.sign(), images - 0.1), images + 0.1).clamp(0, 1)
    return point


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_one_step_is_the_formula(
    soft: bool,
    make: Make,
    update: Callable[..., object],
    descended: Callable[..., nn.Module],
    same: Callable[..., None],
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    targets = 0.7 * F.one_hot(labels, 4) + 0.1 if soft else labels
    still = make("trades", attack={"name": "kl-pgd", "steps": 1, "step_size": 1e-300})
    start = still.adversary(network, images, targets, linf, torch.Generator().manual_seed(3))
    assert 0.0005 < (start - images).std() < 0.002
    point = crafted(network, images, start, 3, 0.04)

    def formula(model: nn.Module) -> Tensor:
        p = model(images).softmax(1)
        chosen = 0.7 * F.one_hot(labels, 4) + 0.1 if soft else F.one_hot(labels, 4)
        return -(chosen * p.log()).sum(1).mean() + 2.5 * kl(p, model(point).softmax(1))

    expected = descended(network, formula)
    trades = make("trades", beta=2.5, attack={"name": "kl-pgd", "steps": 3, "step_size": 0.04})
    update(trades, network, images, targets, linf, seed=3)
    same(network, expected)


def test_the_gradient_goes_through_both_branches(
    make: Make, network: nn.Module, images: Tensor, linf: ThreatModel
) -> None:
    trades, network = make("trades"), network.eval()
    leaf, generator = images.clone().requires_grad_(), torch.Generator()
    p, q = network(images).softmax(1).detach(), network(leaf * 0.9).softmax(1)
    labels = torch.zeros(8, dtype=torch.int64)
    loss = trades.loss(network, leaf, images, labels, generator) - F.cross_entropy(network(leaf), labels)
    (by_clean,) = torch.autograd.grad(loss, leaf)
    assert by_clean.abs().max() < 1e-9  # KL(p || p) is least
    loss = trades.loss(network, leaf * 0.9, images, labels, generator) - F.cross_entropy(network(leaf * 0.9), labels)
    (by_clean,) = torch.autograd.grad(loss, leaf)
    (expected,) = torch.autograd.grad(6 * kl(q, p), leaf)
    torch.testing.assert_close(by_clean, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_its_attack_moves_the_prediction_inside_the_ball(
    norm: str, registry: Registry, network: nn.Module, images: Tensor, make_rng: Callable[..., Rng]
) -> None:
    threat, network = ThreatModel(norm=norm, epsilon={"linf": 0.1, "l2": 0.5, "l1": 1.5}[norm]), network.eval()
    clean = network(images).detach()
    victim = Victim(network, images, make_rng(images, stream=1), drop=False)
    moved = registry.create("attack", "kl-pgd").perturb(victim, images, Goal(clean.argmax(1)), threat, make_rng(images))
    random = threat.random_start(images, make_rng(images))
    assert threat.contains(moved, images).all()
    assert kl(clean.softmax(1), network(moved).softmax(1)) > 3 * kl(clean.softmax(1), network(random).softmax(1))
    assert victim.counts.forwards.tolist() == [11] * 8
    assert victim.counts.backwards.tolist() == [10] * 8


def test_its_attack_costs_what_it_says(
    registry: Registry, network: nn.Module, images: Tensor, make_rng: Callable[..., Rng]
) -> None:
    """At an epsilon that reaches nothing, so that no restart is spared."""
    attack, network = registry.create("attack", {"name": "kl-pgd", "restarts": 3}), network.eval()
    victim = Victim(network, images, make_rng(images, stream=1))
    tiny = ThreatModel(norm="linf", epsilon=1e-9)
    attack.perturb(victim, images, Goal(network(images).argmax(1)), tiny, make_rng(images))
    assert (int(victim.counts.forwards[0]), int(victim.counts.backwards[0])) == attack.cost(4) == (35, 30)


def test_its_attack_asks_for_no_label_but_for_a_target(
    registry: Registry,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
    make_rng: Callable[..., Rng],
) -> None:
    attack, network = registry.create("attack", "kl-pgd"), network.eval()

    def run(goal: Goal) -> Tensor:
        victim = Victim(network, images, make_rng(images, stream=1), drop=False)
        moved: Tensor = attack.perturb(victim, images, goal, linf, make_rng(images))
        return moved

    assert torch.equal(run(Goal(labels)), run(Goal((labels + 1) % 4)))
    wanted = (labels + 2) % 4
    rise = F.cross_entropy(network(images), wanted) - F.cross_entropy(network(run(Goal(labels, wanted))), wanted)
    assert rise > 0.1


def test_bad_parameters_are_refused(make: Make, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError, match="beta of defense 'trades' is -1"):
        make("trades", beta=-1)
    boundless = ThreatModel(norm="l2", epsilon=float("inf"))
    with pytest.raises(InputError, match="epsilon is inf: give attack 'kl-pgd' a step_size"):
        make("trades").adversary(network, images, labels, boundless, torch.Generator())
