"""APGD: parity with torchattacks, the exact worst case of linear models, classes in turn, cost."""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from guard_plugins.attacks.apgd import APGD
from torch import Tensor, nn

from guard import LOSSES, Cost, Goal, InputError, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 1.5}
LINEAR = {"linf": 0.2, "l2": 0.9, "l1": 0.3}
TOLERANCE = {"linf": 1e-9, "l2": 1e-4, "l1": 1e-9}


def perturb(attack: APGD, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, **rng: Any) -> Tensor:
    index = rng.get("index", torch.arange(len(images)))
    adversarial = attack.perturb(victim, images, goal, threat, Rng(rng.get("seed", 0), index, tuple(images.shape[1:])))
    assert threat.contains(adversarial, images).all()
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    return adversarial


@pytest.fixture
def goal(curved: nn.Module, images: Tensor) -> Goal:
    return Goal(curved(images).argmax(1))


def worst(model: nn.Module, goal: Goal, images: Tensor, epsilon: float, norm: str, optimum: Any) -> Tensor:
    """The exact smallest margin of a linear model in the ball, shape (N,): the least over the wrong classes."""
    weight, classes = model.weight.detach(), len(model.weight)  # type: ignore[arg-type,union-attr,operator]
    margins = []
    for shift in range(1, classes):
        away = weight[(goal.labels + shift) % classes] - weight[goal.labels]
        points = [optimum(norm, a.numpy(), x.flatten().numpy(), epsilon) for a, x in zip(away, images, strict=True)]
        margins.append(goal.margin(model(torch.tensor(np.array(points)).view_as(images))).detach())
    return torch.stack(margins).amin(0)


@pytest.fixture
def scene(linear: Callable[..., nn.Module]) -> Callable[..., tuple[nn.Module, Tensor, Goal]]:
    """scene(classes, norm) -> a linear model, six images that the range clips (for l1, where one entry carries the
    whole budget, it does not), and the goal to leave any label."""

    def make(classes: int, norm: str = "linf") -> tuple[nn.Module, Tensor, Goal]:
        generator = torch.Generator().manual_seed(classes)
        images = torch.rand(6, 1, 3, 4, generator=generator, dtype=torch.float64)
        images = 0.45 + 0.1 * images if norm == "l1" else (images * 1.6 - 0.3).clamp(0, 1)
        weight = torch.randn(classes, 12, generator=generator, dtype=torch.float64)
        return linear(weight, torch.zeros(classes).double()), images, Goal(torch.arange(6) % classes)

    return make


@pytest.mark.parametrize(("loss", "targeted"), [("ce", False), ("dlr", False), ("dlr", True)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_best_point_is_torchattacks_from_the_same_start(
    norm: str,
    loss: str,
    targeted: bool,
    make_victim: Make,
    curved: nn.Module,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its first comparison of losses is with a row of its table that is not filled yet; filled with -inf it comes out
    as ours with the start's loss. In l2 its targeted attack gives every image the first image's step size, so that it
    gets one image at a time; and it clips after the ball, so that the range stays out of it. It evaluates one point
    more: 51 steps of ours are 50 of its, with the same checkpoints. Where the label has become the third class, dlr is
    1 and its gradient mere rounding."""
    peer = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    images = images if norm == "linf" else images * 0.2 + 0.4
    labels, steps, epsilon = curved(images).argmax(1), 50, {"linf": 0.06, "l2": 0.1}[norm]
    draws = Rng(0, torch.arange(8), (3, 4, 4)).fold(0)
    draw = (draws.uniform(-1, 1) if norm == "linf" else draws.normal()).double()
    monkeypatch.setattr(torch, "rand" if norm == "linf" else "randn", lambda shape: None)
    settings = {"norm": norm.replace("l", "L"), "eps": epsilon, "steps": steps}
    attack = peer.APGDT(curved, **settings) if targeted else peer.APGD(curved, loss=loss, **settings)
    attack.target_class = 2
    judge = attack.check_oscillation

    def filled(losses: Any, last: int, gap: int, *more: Any, **named: Any) -> Any:
        losses[last + 1 :] = -math.inf
        return judge(losses, last, gap, *more, **named)

    attack.check_oscillation = filled
    best = []
    torch.set_default_dtype(torch.float64)
    try:
        for row in range(8):
            one = draw[row : row + 1]
            monkeypatch.setattr(torch, "rand", lambda shape, one=one: (one + 1) / 2)
            monkeypatch.setattr(torch, "randn", lambda shape, one=one: one)
            best.append(attack.attack_single_run(images[row : row + 1], labels[row : row + 1])[0].detach())
    finally:
        torch.set_default_dtype(torch.float32)
        monkeypatch.undo()
    spec = APGD(steps=51, targets=1) if targeted else APGD(steps=51, loss="dlr" if loss == "dlr" else "cross-entropy")
    threat = ThreatModel(norm=norm, epsilon=epsilon)
    ours = perturb(spec, make_victim(curved, images, drop=False), images, Goal(labels), threat)
    alive = LOSSES["dlr"](curved(ours), Goal(labels)) < 1 - 1e-6 if spec.loss == "dlr" else torch.ones(8).bool()
    assert alive.sum() > 3
    torch.testing.assert_close(ours[alive], torch.cat(best)[alive], atol=1e-7, rtol=0)
    assert not curved(ours).argmax(1).eq(labels).all(), "some images must fall"


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
@pytest.mark.parametrize("norm", EPSILON)
def test_it_reaches_the_exact_worst_margin_of_two_classes(
    norm: str, loss: Any, scene: Any, make_victim: Make, linear_optimum: Any
) -> None:
    model, images, goal = scene(2, norm)
    threat = ThreatModel(norm=norm, epsilon=LINEAR[norm])
    adversarial = perturb(APGD(loss=loss), make_victim(model, images, drop=False), images, goal, threat)
    exact = worst(model, goal, images, threat.epsilon, norm, linear_optimum)
    torch.testing.assert_close(goal.margin(model(adversarial)).detach(), exact, atol=TOLERANCE[norm], rtol=0)
    assert (goal.margin(model(adversarial)) >= exact - 1e-9).all(), "no point can be better than the optimum"


@pytest.mark.parametrize("norm", EPSILON)
def test_aimed_at_each_class_it_reaches_the_exact_worst_margin_of_five(
    norm: str, scene: Any, make_victim: Make, linear_optimum: Any
) -> None:
    model, images, goal = scene(5, norm)
    threat = ThreatModel(norm=norm, epsilon=LINEAR[norm])
    victim = make_victim(model, images, drop=False)
    adversarial = perturb(APGD(targets=9, loss="margin"), victim, images, goal, threat)
    exact = worst(model, goal, images, threat.epsilon, norm, linear_optimum)
    torch.testing.assert_close(goal.margin(model(adversarial)).detach(), exact, atol=TOLERANCE[norm], rtol=0)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_are_enough(classes: int, scene: Any, make_victim: Make, linear_optimum: Any) -> None:
    """With so few, dlr is the margin, and there are fewer classes to aim at than asked for."""
    model, images, goal = scene(classes)
    threat = ThreatModel(norm="linf", epsilon=0.2)
    exact = worst(model, goal, images, 0.2, "linf", linear_optimum)
    for attack in (APGD(loss="dlr"), APGD(targets=9), APGD(targets=9, loss="cross-entropy")):
        victim = make_victim(model, images, drop=False)
        adversarial = perturb(attack, victim, images, goal, threat)
        runs = classes - 1 if attack.targets else 1
        assert (victim.counts.backwards == 100 * runs).all()
        if attack.targets and (classes == 2 or (classes == 3 and attack.loss is None)):
            torch.testing.assert_close(goal.margin(model(adversarial)).detach(), exact, atol=1e-6, rtol=0)


def test_the_likeliest_wrong_class_comes_first(
    linear: Callable[..., nn.Module], make_victim: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the label itself is not the likeliest, it is left out all the same."""
    images = torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64)
    model = linear(torch.zeros(5, 4).double(), torch.tensor([0.0, 4, 3, 1, 2]).double())
    aims: list[list[int]] = []

    def spy(logits: Tensor, goal: Goal) -> Tensor:
        assert goal.aims is not None
        aims.append(goal.aims.tolist())
        return logits.sum(1)

    monkeypatch.setitem(LOSSES, "dlr", spy)
    goal, threat = Goal(torch.tensor([1, 2])), ThreatModel(norm="linf", epsilon=0.1)
    perturb(APGD(targets=3, steps=1), make_victim(model, images, drop=False), images, goal, threat)
    assert aims == [[2, 1], [4, 4], [3, 3]]


def test_a_targeted_goal_is_the_only_aim(make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal) -> None:
    goal, threat = Goal(goal.labels, (goal.labels + 2) % 4), ThreatModel(norm="linf", epsilon=0.3)
    several, one = make_victim(curved, images), make_victim(curved, images)
    adversarial = perturb(APGD(targets=9), several, images, goal, threat)
    assert torch.equal(adversarial, perturb(APGD(loss="dlr"), one, images, goal, threat))
    assert torch.equal(several.counts.forwards, one.counts.forwards)
    assert goal.reached(curved(adversarial)).all()


@pytest.mark.parametrize("drop", [True, False], ids=["drop", "keep"])
@pytest.mark.parametrize("norm", EPSILON)
def test_aimed_a_result_depends_on_neither_batch_size_nor_order(
    norm: str, drop: bool, make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    threat = ThreatModel(norm=norm, epsilon=EPSILON[norm] / 2)

    def of(rows: Tensor) -> Tensor:
        victim = make_victim(curved, images[rows], index=rows, drop=drop)
        attack = APGD(targets=2, restarts=2, steps=6)
        return perturb(attack, victim, images[rows].clone(), goal[rows], threat, index=rows)

    whole = of(torch.arange(8))
    for size in (1, 3):
        assert torch.equal(torch.cat([of(rows) for rows in torch.arange(8).split(size)]), whole)
    backwards = torch.arange(7, -1, -1)
    assert torch.equal(of(backwards), whole[backwards])
    reached = goal.reached(curved(whole))
    assert 0 < reached.sum() < 8, "the scene must have both"


@pytest.mark.parametrize(
    "attack", [APGD(steps=7), APGD(steps=7, restarts=3), APGD(steps=7, targets=9), APGD(steps=7, targets=2, restarts=2)]
)
def test_its_cost_is_what_an_image_that_never_falls_costs(
    attack: APGD, make_victim: Make, linear: Callable[..., nn.Module], images: Tensor
) -> None:
    model = linear(torch.zeros(4, 48).double(), torch.tensor([9.0, 0, 0, 0]).double())
    victim = make_victim(model, images)
    perturb(attack, victim, images, Goal(torch.zeros(8, dtype=torch.int64)), ThreatModel(norm="linf", epsilon=0.1))
    cost = Cost(int(victim.counts.forwards[0]), int(victim.counts.backwards[0]))
    assert attack.cost(4) == cost
    assert cost.backwards == 7 * attack.restarts * {0: 1, 2: 2, 9: 3}[attack.targets]


def test_every_run_starts_elsewhere(make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal) -> None:
    starts: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            if points.requires_grad:
                starts.append(points.detach().clone())
            logits: Tensor = curved(points)
            return logits

    attack, threat = APGD(targets=2, restarts=2, steps=1), ThreatModel(norm="linf", epsilon=0.1)
    perturb(attack, make_victim(Spy(), images, drop=False), images, goal, threat)
    assert len(starts) == 4
    assert all((one != other).flatten(1).any(1).all() for one, other in combinations(starts, 2))


def test_a_budget_is_kept(make_victim: Make, linear: Callable[..., nn.Module], images: Tensor) -> None:
    model = linear(torch.zeros(4, 48).double(), torch.tensor([9.0, 0, 0, 0]).double())
    goal, threat = Goal(torch.zeros(8, dtype=torch.int64)), ThreatModel(norm="linf", epsilon=0.1)
    for budget in (1, 2, 30):
        victim = make_victim(model, images, max_queries=budget)
        perturb(APGD(steps=20, targets=3), victim, images, goal, threat)
        assert (victim.counts.forwards == budget).all()


def test_corners_of_the_range_can_be_left(make_victim: Make, linear: Callable[..., nn.Module]) -> None:
    """From a black and a white image, each value moves the whole way where that gains."""
    weight = torch.tensor([[0.0] * 4, [1.0, -1, 1, -1]]).double()
    images = torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1).expand(2, 1, 2, 2).contiguous()
    goal, threat = Goal(torch.zeros(2, dtype=torch.int64)), ThreatModel(norm="linf", epsilon=0.25)
    model = linear(weight, torch.tensor([5.0, 0]).double())
    adversarial = perturb(APGD(steps=20), make_victim(model, images), images, goal, threat)
    expected = torch.tensor([[0.25, 0, 0.25, 0], [1, 0.75, 1, 0.75]]).double().view(2, 1, 2, 2)
    torch.testing.assert_close(adversarial, expected)


@pytest.mark.parametrize("norm", EPSILON)
def test_an_image_without_gradient_stays_in_place_and_harms_nobody(
    norm: str, make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    class Flat(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = curved(points)
            return logits * (torch.arange(len(points)) != 2)[:, None]

    threat = ThreatModel(norm=norm, epsilon=EPSILON[norm])
    adversarial = perturb(APGD(), make_victim(Flat(), images, drop=False), images, goal, threat)
    plain = perturb(APGD(), make_victim(curved, images, drop=False), images, goal, threat)
    others = torch.arange(8) != 2
    assert torch.equal(adversarial[others], plain[others])
    assert adversarial.isfinite().all()


def test_it_needs_a_bound(make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal) -> None:
    for attack in (APGD(), APGD(targets=3)):
        with pytest.raises(InputError, match=r"attack 'apgd' takes steps of that length\. Give a finite epsilon"):
            perturb(attack, make_victim(curved, images), images, goal, ThreatModel(norm="l2", epsilon=math.inf))
