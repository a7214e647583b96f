"""fast-pgd: the closed form on linear models, its steps by hand, what it asks, and that each image stands alone."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from guard_plugins.attacks.fast_pgd import FastPGD
from guard_plugins.attacks.pgd import PGD
from torch import Tensor, nn

from guard import LOSSES, Cost, Goal, InputError, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Linear = Callable[..., nn.Module]
EPSILON = {"linf": 0.2, "l2": 0.9, "l1": 2.5}


def perturb(attack: FastPGD | PGD, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel) -> Tensor:
    rng = Rng(0, torch.arange(len(images)), tuple(images.shape[1:]))
    adversarial = attack.perturb(victim, images, goal, threat, rng)
    assert threat.contains(adversarial, images).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    return adversarial


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize(("norm", "short"), [("linf", 0.0), ("l2", 5e-4), ("l1", 0.15)])
def test_it_reaches_the_worst_margin_of_a_linear_model(
    norm: str,
    short: float,
    targeted: bool,
    linear: Linear,
    make_victim: Make,
    linear_optimum: Callable[..., np.ndarray],
) -> None:
    """In the default number of steps; `short` is the share of the way from the clean margin that may be missing. For
    l1, where pixels of different steepness move alike, that does not vanish with more steps."""
    generator = torch.Generator().manual_seed(2)
    images = (torch.rand(6, 1, 3, 4, generator=generator, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)
    weight = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    model, labels = linear(weight, torch.zeros(2, dtype=torch.float64)), torch.tensor([0, 1, 0, 1, 0, 1])
    goal, threat = Goal(labels, 1 - labels if targeted else None), ThreatModel(norm=norm, epsilon=EPSILON[norm])
    adversarial = perturb(FastPGD(), make_victim(model, images, drop=False), images, goal, threat)
    clean, reached = (goal.margin(model(points)).detach() for points in (images, adversarial))
    away = (weight[1 - labels] - weight[labels]).numpy()
    best = [linear_optimum(norm, away[row], images[row].flatten().numpy(), threat.epsilon) for row in range(6)]
    exact = goal.margin(model(torch.tensor(np.array(best)).view_as(images))).detach()
    assert (reached >= exact - 1e-9).all(), "no point of the ball can be better than the optimum"
    assert (reached <= exact + short * (clean - exact) + 1e-9).all()


@pytest.mark.parametrize("drop", [True, False], ids=["drop", "keep"])
def test_in_linf_it_equals_a_loop_by_hand(drop: bool, make_victim: Make, curved: nn.Module, images: Tensor) -> None:
    """Where images are dropped, for those that never fall."""
    labels, epsilon, steps = curved(images).argmax(1), 0.08, 7
    threat = ThreatModel(norm="linf", epsilon=epsilon)
    adversarial = perturb(FastPGD(steps=steps), make_victim(curved, images, drop=drop), images, Goal(labels), threat)
    x = threat.random_start(images, Rng(0, torch.arange(8), (3, 4, 4)).fold(0))
    compared = torch.ones(8, dtype=torch.bool)
    for step in range(steps):
        x = x.detach().requires_grad_()
        loss = LOSSES["cross-entropy" if step < 4 else "margin"]
        (gradient,) = torch.autograd.grad(loss(curved(x), Goal(labels)).sum(), x)
        x = x.detach() + epsilon * (7 - step) / 7 * gradient.sign()
        x = x.clamp(images - epsilon, images + epsilon).clamp(0, 1)
        compared &= (curved(x).argmax(1) == labels) | (not drop)
    assert compared.any()
    torch.testing.assert_close(adversarial[compared], x[compared], atol=1e-7, rtol=0)


def test_in_l1_a_step_moves_the_steepest_pixels_that_have_room(linear: Linear, make_victim: Make) -> None:
    """epsilon 1.5: the first step moves 3 pixels by 1/2 each; the steepest two are at their end and stay."""
    weight = torch.stack([torch.zeros(6), torch.tensor([6.0, -5.0, 4.0, -3.0, 2.0, 1.0])]).double()
    images = torch.tensor([1.0, 0.0, 0.4, 0.6, 0.4, 0.4], dtype=torch.float64).view(1, 1, 2, 3)
    model, goal = linear(weight, torch.zeros(2).double()), Goal(torch.tensor([0]))
    threat = ThreatModel(norm="l1", epsilon=1.5)
    adversarial = perturb(FastPGD(steps=1), make_victim(model, images, drop=False), images, goal, threat)
    assert adversarial.flatten().tolist() == pytest.approx([1, 0, 0.9, 0.1, 0.9, 0.4])


@pytest.mark.parametrize("drop", [True, False], ids=["drop", "keep"])
@pytest.mark.parametrize("norm", EPSILON)
def test_a_result_depends_on_neither_batch_size_nor_order(
    norm: str, drop: bool, make_victim: Make, curved: nn.Module, images: Tensor
) -> None:
    labels, threat = curved(images).argmax(1), ThreatModel(norm=norm, epsilon=EPSILON[norm] / 6)

    def of(rows: Tensor) -> Tensor:
        victim, rng = make_victim(curved, images[rows], index=rows, drop=drop), Rng(0, rows, (3, 4, 4))
        return FastPGD(restarts=2).perturb(victim, images[rows], Goal(labels[rows]), threat, rng)

    whole = of(torch.arange(8))
    fallen = Goal(labels).reached(curved(whole))
    assert 0 < fallen.sum() < 8, "the scene must have both"
    for size in (1, 3):
        assert torch.equal(torch.cat([of(rows) for rows in torch.arange(8).split(size)]), whole)
    assert torch.equal(of(torch.arange(7, -1, -1)), whole[torch.arange(7, -1, -1)])


def test_what_it_asks_about_an_image(linear: Linear, make_victim: Make) -> None:
    """Wrong at the start: one gradient. Falls to the first step: a forward more. Never falls: what `cost` says."""
    images = torch.full((3, 1, 2, 2), 0.5, dtype=torch.float64)
    images[0], images[2] = 0.9, 0.0
    weight = torch.stack([torch.zeros(4), torch.ones(4)]).double()
    model, goal = linear(weight, torch.tensor([2.2, 0.0]).double()), Goal(torch.zeros(3, dtype=torch.int64))
    threat = ThreatModel(norm="linf", epsilon=0.1)
    attack, victim = FastPGD(restarts=2), make_victim(model, images)
    assert goal.reached(model(perturb(attack, victim, images, goal, threat))).tolist() == [True, True, False]
    most = attack.cost(2)
    assert most == Cost(27, 24)
    forwards, backwards = victim.counts.forwards.tolist(), victim.counts.backwards.tolist()
    assert backwards == [1, 1, 24]
    assert forwards[2] == 27
    assert forwards[1] - forwards[0] == 1


def test_a_query_budget_is_kept(make_victim: Make, curved: nn.Module, images: Tensor) -> None:
    labels = curved(images).argmax(1)
    victim = make_victim(curved, images, max_queries=2)
    perturb(FastPGD(), victim, images, Goal(labels), ThreatModel(norm="linf", epsilon=0.001))
    assert victim.counts.forwards.tolist() == [2] * 8


def test_a_search_whose_claims_are_wrong_does_not_stop_it(make_victim: Make, curved: nn.Module, images: Tensor) -> None:
    """Where the faster execution takes every point for adversarial, what the model itself denies goes on."""
    labels = curved(images).argmax(1)

    class Liar(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = curved(points)
            return logits.scatter(1, labels[:1, None].expand(len(points), 1), -10.0)

    same = (labels == labels[0]).nonzero().squeeze(1)
    threat = ThreatModel(norm="linf", epsilon=1e-4)
    victim = make_victim(curved, images[same], search=Liar())
    perturb(FastPGD(), victim, images[same], Goal(labels[same]), threat)
    assert (victim.counts.backwards >= 11).all()


def test_it_finds_in_12_steps_what_pgd_finds_in_40(make_victim: Make, curved: nn.Module, images: Tensor) -> None:
    labels = curved(images).argmax(1)
    for norm, epsilon in EPSILON.items():
        threat, margins = ThreatModel(norm=norm, epsilon=epsilon / 6), []
        for attack in (FastPGD(), PGD(steps=40)):
            points = perturb(attack, make_victim(curved, images, drop=False), images, Goal(labels), threat)
            margins.append(Goal(labels).margin(curved(points)).detach())
        assert (margins[0] <= margins[1] + 0.02).all()


def test_it_needs_a_bound(make_victim: Make, curved: nn.Module, images: Tensor) -> None:
    threat = ThreatModel(norm="l2", epsilon=math.inf)
    with pytest.raises(InputError, match=r"^epsilon is inf: attack 'fast-pgd' measures .* Give a finite epsilon$"):
        perturb(FastPGD(), make_victim(curved, images), images, Goal(curved(images).argmin(1) * 0), threat)
