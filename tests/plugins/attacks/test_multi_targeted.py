"""MultiTargeted: the exact worst case of a network that is linear over the ball, the order of classes, cost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from guard_plugins.attacks.multi_targeted import MultiTargeted
from guard_plugins.attacks.pgd import PGD
from torch import Tensor, nn

from guard import Cost, Goal, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
EPSILON = {"linf": 0.2, "l2": 0.9, "l1": 2.5}


def perturb(
    attack: PGD, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, index: Tensor | None = None
) -> Tensor:
    index = torch.arange(len(images)) if index is None else index
    adversarial = attack.perturb(victim, images, goal, threat, Rng(0, index, tuple(images.shape[1:])))
    assert threat.contains(adversarial, images).all()
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    return adversarial


@pytest.fixture
def goal(curved: nn.Module, images: Tensor) -> Goal:
    return Goal(curved(images).argmax(1))


@pytest.mark.parametrize("norm", EPSILON)
def test_it_reaches_the_exact_worst_margin_where_moving_away_from_the_label_does_not(
    norm: str,
    linear: Callable[..., nn.Module],
    make_victim: Make,
    linear_optimum: Callable[[str, np.ndarray, np.ndarray, float], np.ndarray],
) -> None:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(6, 1, 3, 4, generator=generator, dtype=torch.float64).mul_(1.6).sub_(0.3).clamp_(0, 1)
    weight = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    labels, model = torch.arange(6) % 5, linear(weight, torch.zeros(5).double())
    goal, threat = Goal(labels), ThreatModel(norm=norm, epsilon=EPSILON[norm])
    margins = []
    for shift in range(1, 5):
        away = (weight[(labels + shift) % 5] - weight[labels]).numpy()
        best = [linear_optimum(norm, away[n], images[n].flatten().numpy(), threat.epsilon) for n in range(6)]
        margins.append(goal.margin(model(torch.tensor(np.array(best)).view_as(images))).detach())
    settings: dict[str, Any] = {"steps": 100, "step_size": threat.epsilon, "loss": "margin"}
    victim = make_victim(model, images, drop=False)
    reached = goal.margin(model(perturb(MultiTargeted(**settings), victim, images, goal, threat))).detach()
    torch.testing.assert_close(reached, torch.stack(margins).amin(0), atol=1e-4, rtol=0)
    plain = goal.margin(model(perturb(PGD(**settings), victim, images, goal, threat))).detach()
    assert (plain > reached + 0.1).any()


def test_towards_one_class_it_is_pgd_aimed_there(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    logits, threat = curved(images), ThreatModel(norm="linf", epsilon=0.05)
    second = logits.scatter(1, goal.labels[:, None], -99).argmax(1)
    first = make_victim(curved, images, drop=False)
    aimed = perturb(MultiTargeted(targets=1), first, images, goal, threat)
    plain = perturb(PGD(loss="margin"), make_victim(curved, images, drop=False), images, goal.aim(second), threat)
    assert torch.equal(aimed, plain)
    assert (first.counts.forwards == 11).all()


def test_a_targeted_goal_is_the_only_aim(make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal) -> None:
    goal, threat = Goal(goal.labels, (goal.labels + 2) % 4), ThreatModel(norm="linf", epsilon=0.3)
    results = [
        perturb(attack, make_victim(curved, images), images, goal, threat)
        for attack in (MultiTargeted(steps=30), PGD(steps=30, loss="margin"))
    ]
    assert torch.equal(*results)
    assert goal.reached(curved(results[0])).all()


@pytest.mark.parametrize("drop", [True, False], ids=["drop", "keep"])
@pytest.mark.parametrize("norm", EPSILON)
def test_a_result_depends_on_neither_batch_size_nor_order(
    norm: str, drop: bool, make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    threat = ThreatModel(norm=norm, epsilon=EPSILON[norm] / 4)

    def of(rows: Tensor) -> Tensor:
        victim = make_victim(curved, images[rows], index=rows, drop=drop)
        return perturb(MultiTargeted(steps=6, restarts=2), victim, images[rows].clone(), goal[rows], threat, rows)

    whole = of(torch.arange(8))
    for size in (1, 3):
        assert torch.equal(torch.cat([of(rows) for rows in torch.arange(8).split(size)]), whole)
    backwards = torch.arange(7, -1, -1)
    assert torch.equal(of(backwards), whole[backwards])
    assert 0 < goal.reached(curved(whole)).sum() < 8, "the scene must have both"


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("attack", [MultiTargeted(steps=5), MultiTargeted(steps=5, restarts=2, targets=2)], ids=str)
def test_its_cost_is_what_an_image_that_never_falls_costs(
    attack: MultiTargeted, classes: int, make_victim: Make, linear: Callable[..., nn.Module], images: Tensor
) -> None:
    bias = torch.tensor([9.0, 0, 0, 0]).double()[:classes]
    victim = make_victim(linear(torch.zeros(classes, 48).double(), bias), images)
    perturb(attack, victim, images, Goal(torch.zeros(8, dtype=torch.int64)), ThreatModel(norm="linf", epsilon=0.1))
    assert attack.cost(classes) == Cost(int(victim.counts.forwards[0]), int(victim.counts.backwards[0]))
    assert victim.counts.backwards[0] == 5 * attack.restarts * min(attack.targets or 9, classes - 1)
