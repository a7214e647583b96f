"""Carlini and Wagner, DeepFool and L-BFGS: what they share, and what each does of its own."""

import math
from collections.abc import Callable

import pytest
import torch
from guard_plugins.attacks.carlini_wagner import CarliniWagner
from guard_plugins.attacks.constant_search import Bracket, Closest
from guard_plugins.attacks.deepfool import DeepFool
from guard_plugins.attacks.lbfgs import LBFGS
from torch import Tensor, nn

from guard import Goal, MinimalAttack, NotApplicable, Rng, ThreatModel, Victim
from guard.evaluation.crafting import applicable

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
ATTACKS = [
    pytest.param(CarliniWagner(searches=6, steps=120, learning_rate=0.03), "l2", id="cw"),
    pytest.param(DeepFool(), "l2", id="deepfool-l2"),
    pytest.param(DeepFool(), "linf", id="deepfool-linf"),
    pytest.param(LBFGS(), "l2", id="l-bfgs"),
]

QUICK = [
    pytest.param(CarliniWagner(searches=4, steps=30, learning_rate=0.1), "l2", id="cw"),
    *ATTACKS[1:3],
    pytest.param(LBFGS(searches=4, evaluations=10), "l2", id="l-bfgs"),
]


def nearest(attack: MinimalAttack, victim: Victim, images: Tensor, goal: Goal, norm: str = "l2") -> Tensor:
    rng = Rng(0, torch.arange(len(images)), tuple(images.shape[1:]))
    return attack.nearest(victim, images.clone(), goal, norm, rng)  # type: ignore[arg-type]


def length(points: Tensor, images: Tensor, norm: str = "l2") -> Tensor:
    return ThreatModel(norm=norm, epsilon=1).distance(points, images)  # type: ignore[arg-type]


def net(linear: Callable[..., nn.Module], size: int = 35) -> nn.Module:
    """A network with a bend, for an odd number of pixels, in float64."""
    generator = torch.Generator().manual_seed(1)
    first = linear(torch.randn(8, size, generator=generator).double() / 4, torch.full((8,), 0.1).double())
    return nn.Sequential(first, nn.Tanh(), linear(torch.randn(4, 8, generator=generator).double(), torch.zeros(4)))


def drawn(count: int, *shape: int) -> Tensor:
    """Images in float64, some of their values at 0 and at 1."""
    values = torch.rand(count, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return (values * 1.2 - 0.1).clamp(0, 1)


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize(("attack", "norm"), QUICK)
def test_a_result_depends_on_neither_batch_size_nor_order(
    attack: MinimalAttack, norm: str, targeted: bool, linear: Callable[..., nn.Module], make_victim: Make
) -> None:
    """Bit for bit, though images stop at different steps."""
    model, images = net(linear), drawn(8, 1, 5, 7)
    labels = model(images).argmax(1)
    goal = Goal(labels, (labels + 1) % 4 if targeted else None)

    def of(rows: Tensor) -> tuple[Tensor, Tensor]:
        victim = make_victim(model, images[rows], index=rows)
        return nearest(attack, victim, images[rows], goal[rows], norm), victim.counts.forwards

    whole, forwards = of(torch.arange(8))
    assert len(forwards.unique()) > 1
    assert goal.reached(model(whole)).any()
    for size in (1, 3):
        parts = [of(rows) for rows in torch.arange(8).split(size)]
        assert torch.equal(torch.cat([points for points, _ in parts]), whole)
        assert torch.equal(torch.cat([count for _, count in parts]), forwards)
    order = torch.arange(7, -1, -1)
    assert torch.equal(of(order)[0], whole[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("attack", "norm"), ATTACKS)
def test_black_and_white_images_can_move(
    attack: MinimalAttack, norm: str, dtype: torch.dtype, linear: Callable[..., nn.Module], make_victim: Make
) -> None:
    images = drawn(4, 1, 4, 4).round().to(dtype)
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    weight -= weight.mean(0)
    model = linear(weight, torch.zeros(2, dtype=dtype))
    goal = Goal(model(images).argmax(1))
    victim = make_victim(model, images)
    points = nearest(attack, victim, images, goal, norm)
    assert not victim.counts.broken.any()
    assert points.dtype == dtype
    assert ((points >= 0) & (points <= 1)).all()
    assert goal.reached(model(points)).all()


@pytest.mark.parametrize(("attack", "norm"), QUICK)
def test_where_nothing_is_found_the_image_itself_is_returned(
    attack: MinimalAttack, norm: str, linear: Callable[..., nn.Module], make_victim: Make
) -> None:
    """On a constant model, and where the label leads by more than the whole box is worth; within the cost stated."""
    images, goal = drawn(3, 1, 4, 4), Goal(torch.zeros(3, dtype=torch.int64))
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(3)).double()
    for scale in (0, 1):
        victim = make_victim(linear(scale * weight, torch.tensor([1e3, 0, 0]).double()), images)
        assert torch.equal(nearest(attack, victim, images, goal, norm), images)
        cost = attack.cost(3)
        assert cost is not None
        assert (victim.counts.forwards <= cost.forwards).all()
        assert (victim.counts.backwards <= cost.backwards).all()
        assert not victim.counts.broken.any()
        if attack.name == "deepfool":
            assert (victim.counts.forwards == cost.forwards).all()
            assert (victim.counts.backwards == cost.backwards).all()


@pytest.mark.parametrize(("attack", "norm"), QUICK)
def test_an_image_that_is_at_its_goal_stays_and_costs_one_forward(
    attack: MinimalAttack, norm: str, linear: Callable[..., nn.Module], make_victim: Make
) -> None:
    model, images = net(linear), drawn(4, 1, 5, 7)
    labels = model(images).argmax(1)
    labels[1] = (labels[1] + 1) % 4
    victim = make_victim(model, images)
    points = nearest(attack, victim, images, Goal(labels), norm)
    assert torch.equal(points[1], images[1])
    assert (points != images).flatten(1).any(1).any()
    assert victim.counts.forwards[1] == 1
    assert victim.counts.backwards[1] == 0


@pytest.mark.parametrize(("attack", "norm"), QUICK)
def test_a_claim_of_a_faster_execution_counts_only_once_it_is_confirmed(
    attack: MinimalAttack, norm: str, linear: Callable[..., nn.Module], make_victim: Make
) -> None:
    """The fast model errs earlier than the model itself."""
    weight = torch.randn(2, 35, generator=torch.Generator().manual_seed(3)).double()
    images, goal = drawn(4, 1, 5, 7), Goal(torch.zeros(4, dtype=torch.int64))
    centre = weight @ images.mean(0).flatten()
    model, hasty = (linear(weight, torch.tensor([lead, 0]).double() - centre) for lead in (5, 4.9))
    points = nearest(attack, make_victim(model, images, search=hasty), images, goal, norm)
    moved = (points != images).flatten(1).any(1)
    assert torch.equal(goal.reached(model(points)), moved)
    assert moved.any() or attack.name == "deepfool"


@pytest.mark.parametrize(("attack", "norm"), QUICK)
def test_a_budget_of_queries_is_kept(
    attack: MinimalAttack, norm: str, linear: Callable[..., nn.Module], make_victim: Make
) -> None:
    model, images = net(linear), drawn(4, 1, 5, 7)
    goal = Goal(model(images).argmax(1))
    for budget in (1, 2, 5, 30):
        victim = make_victim(model, images, max_queries=budget)
        nearest(attack, victim, images, goal, norm)
        assert victim.counts.forwards.max() <= budget


@pytest.mark.parametrize(
    "attack", [CarliniWagner(searches=6, steps=50, learning_rate=0.1), LBFGS(searches=5)], ids=["cw", "l-bfgs"]
)
def test_inside_a_ball_the_search_ends_once_it_is_reached(
    attack: MinimalAttack, linear: Callable[..., nn.Module], make_victim: Make
) -> None:
    model, images = net(linear), drawn(4, 1, 5, 7)
    goal, rng = Goal(model(images).argmax(1)), Rng(0, torch.arange(4), (1, 5, 7))
    best = length(nearest(attack, make_victim(model, images), images, goal), images)
    threat = ThreatModel(norm="l2", epsilon=1.1 * float(best.max()))
    stops, goes_on = make_victim(model, images), make_victim(model, images, drop=False)
    quick = attack.perturb(stops, images.clone(), goal, threat, rng)
    full = attack.perturb(goes_on, images.clone(), goal, threat, rng)
    assert goal.reached(model(quick)).all()
    assert threat.contains(quick, images).all()
    assert torch.equal(length(full, images), best)
    assert (stops.counts.forwards < goes_on.counts.forwards).all()


@pytest.mark.parametrize("attack", [CarliniWagner(), DeepFool(), LBFGS()], ids=["cw", "deepfool", "l-bfgs"])
def test_other_norms_are_refused(attack: MinimalAttack) -> None:
    for norm in {"linf", "l2", "l1"} - attack.norms:
        with pytest.raises(NotApplicable, match=f"attack '{attack.name}' works in .*, not in {norm}"):
            applicable(attack, attack.name, ThreatModel(norm=norm, epsilon=0.1), "gradients")
    with pytest.raises(NotApplicable, match="needs gradients"):
        applicable(attack, attack.name, ThreatModel(norm="l2", epsilon=0.1), "logits")


def test_confidence_is_how_far_beyond_the_goal_points_are(linear: Callable[..., nn.Module], make_victim: Make) -> None:
    model, images = net(linear), drawn(4, 1, 5, 7)
    goal = Goal(model(images).argmax(1))
    sure = CarliniWagner(searches=7, steps=100, learning_rate=0.05, confidence=0.5)
    margins = -goal.margin(model(nearest(sure, make_victim(model, images), images, goal)))
    assert (margins >= 0.5).all()
    assert (margins < 0.6).all()


def test_one_step_of_deepfool_is_the_closed_form(make_victim: Make, linear: Callable[..., nn.Module]) -> None:
    """Where no pixel meets 0 or 1: the gap over the dual norm, along the gradient or its sign, and the overshoot."""
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(3)).double()
    model, images = (
        linear(weight, torch.tensor([0.3, 0, 0.1]).double() - 0.5 * weight.sum(1)),
        torch.full((1, 1, 4, 4), 0.5),
    )
    images, goal = images.double(), Goal(torch.zeros(1, dtype=torch.int64))
    gaps, normals = torch.tensor([0.3, 0.2]).double(), weight[1:] - weight[0]
    for norm, dual in (("l2", normals.norm(dim=1)), ("linf", normals.abs().sum(1))):
        k = int((gaps / dual).argmin())
        way = normals[k] / dual[k] if norm == "l2" else normals[k].sign()
        expected = images.flatten() + 1.1 * gaps[k] / dual[k] * way
        victim = make_victim(model, images)
        points = nearest(DeepFool(overshoot=0.1), victim, images, goal, norm)
        torch.testing.assert_close(points.flatten(), expected, atol=1e-12, rtol=0)
        assert (victim.counts.forwards.item(), victim.counts.backwards.item()) == (3, 3)


def test_a_bracket_grows_tenfold_and_then_halves() -> None:
    bracket = Bracket(torch.zeros(2, 1, 1, 1, dtype=torch.float64), 0.5)
    seen = []
    for reached in ([False, False], [True, False], [False, False], [True, True]):
        bracket.judge(torch.tensor(reached))
        seen.append(bracket.constant.tolist())
    assert seen == [[5, 5], [2.75, 50], [3.875, 500], [3.3125, 275]]


def test_only_a_closer_point_is_kept() -> None:
    images = torch.zeros(3, 1, 1, 1)
    best = Closest(images, torch.tensor([False, False, True]))
    for distance, value in ((2.0, 0.2), (1.0, 0.1), (3.0, 0.3)):
        best.note(torch.tensor([1, 2]), torch.full((2, 1, 1, 1), value), torch.full((2,), distance))
    assert best.points.flatten().tolist() == pytest.approx([0, 0.1, 0])
    assert best.distance.tolist() == [math.inf, 1, 0]


def test_lbfgs_asks_no_more_often_than_it_may(linear: Callable[..., nn.Module], make_victim: Make) -> None:
    model, images = net(linear), drawn(3, 1, 5, 7)
    victim, attack = make_victim(model, images), LBFGS(searches=2, evaluations=3)
    nearest(attack, victim, images, Goal(model(images).argmax(1)))
    assert victim.counts.forwards.tolist() == [7, 7, 7]
    assert attack.cost(4) == (7, 6)


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_carlini_wagner_equals_autograd_and_adam_by_hand(
    targeted: bool, linear: Callable[..., nn.Module], make_victim: Make
) -> None:
    """One image at a time, written out, with the search over c and the early end."""
    model, images = net(linear), drawn(3, 1, 5, 7)
    labels = model(images).argmax(1)
    goal = Goal(labels, (labels + 1) % 4 if targeted else None)
    attack = CarliniWagner(searches=6, steps=40, learning_rate=0.1)
    points = nearest(attack, make_victim(model, images), images, goal)
    for row, image in enumerate(images.split(1)):
        aim, c, low, high, best, record = goal[torch.tensor([row])], 1e-3, 0.0, math.inf, image, math.inf
        for _ in range(6):
            w = torch.atanh((image * 2 - 1) * 0.999).requires_grad_()
            first, second, before, success = torch.zeros_like(w), torch.zeros_like(w), math.inf, False
            for step in range(40):
                x = (w.tanh() + 1) / 2
                logits, square = model(x), (x - image).square().sum()
                loss = square + c * aim.margin(logits).clamp(min=0).sum()
                if aim.reached(logits):
                    success = True
                    if square < record:
                        best, record = x.detach(), square.item()
                (slope,) = torch.autograd.grad(loss, w)
                first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
                mean, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
                w = (w - 0.1 * mean / (spread.sqrt() + 1e-8)).detach().requires_grad_()
                if step % 4 == 0:
                    if loss > 0.9999 * before:
                        break
                    before = loss.item()
            low, high = (low, c) if success else (c, high)
            c = (low + high) / 2 if high < math.inf else 10 * c
        assert record < math.inf
        torch.testing.assert_close(points[row : row + 1], best, atol=1e-9, rtol=0)
