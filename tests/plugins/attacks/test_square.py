"""Square: its search replayed query by query, and closed forms on linear models."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from guard_plugins.attacks.square import Square
from guard_plugins.attacks.squares import L2Squares, LinfSquares
from torch import Tensor, nn

from guard import Goal, InputError, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Linear = Callable[..., nn.Module]
THREATS = [ThreatModel(norm="linf", epsilon=0.2), ThreatModel(norm="l2", epsilon=0.9)]
BOTH = pytest.mark.parametrize("threat", THREATS, ids=str)


class Watched(nn.Module):
    """A model that notes every batch it is asked about, and what it answered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.points: list[Tensor] = []
        self.logits: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.points.append(images.clone())
        self.logits.append(self.model(images))
        return self.logits[-1]


def scene(shape: tuple[int, int, int], classes: int = 2, count: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in float64 with values at 0 and 1, labels, and a linear model's weight and bias."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    images = (torch.rand(count, *shape, generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    weight = torch.randn(classes, math.prod(shape), generator=generator, dtype=torch.float64)
    return images, torch.arange(count) % classes, weight, torch.zeros(classes, dtype=torch.float64)


def attack(made: Square, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, seed: int = 0) -> Tensor:
    adversarial = made.perturb(victim, images, goal, threat, Rng(seed, torch.arange(len(images)), images.shape[1:]))
    assert adversarial.dtype == images.dtype
    assert threat.contains(adversarial, images).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    return adversarial


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 4, 2)], ids=str)
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_linf_reaches_the_exact_worst_case_of_a_linear_model(
    shape: tuple[int, int, int],
    targeted: bool,
    linear: Linear,
    make_victim: Make,
    linear_optimum: Callable[..., np.ndarray],
) -> None:
    """Single pixels from the first change on. Pixels add up, so a pixel is right for good once its best signs were
    drawn: in each query with probability 1 / (pixels 2^channels) >= 1/64, missed 1,499 times with 1e-10."""
    images, labels, weight, bias = scene(shape)
    model, threat = linear(weight, bias), THREATS[0]
    goal = Goal(labels, 1 - labels if targeted else None)
    made = Square(queries=1500, start_size=1e-9)
    reached = goal.margin(model(attack(made, make_victim(model, images, drop=False), images, goal, threat)))
    for row in range(len(images)):
        away = (weight[1 - labels[row]] - weight[labels[row]]).numpy()
        best = torch.tensor(linear_optimum("linf", away, images[row].flatten().numpy(), threat.epsilon))
        exact = goal[torch.tensor([row])].margin(model(best.view(1, *shape)))
        assert reached[row].item() == pytest.approx(exact.item(), abs=1e-9)


def test_l2_comes_close_to_the_worst_case_of_a_linear_model(
    linear: Linear, make_victim: Make, linear_optimum: Callable[..., np.ndarray]
) -> None:
    """A square's shape is not free, so the optimum itself is out of reach."""
    images, labels, _, bias = scene((1, 10, 10))
    wave = torch.linspace(0, 6, 10, dtype=torch.float64).sin()
    weight = torch.stack([(wave[:, None] * wave).flatten(), -(wave[:, None] * wave).flatten()])
    model, threat, goal = linear(weight, bias), THREATS[1], Goal(labels)
    points = attack(Square(queries=1000), make_victim(model, images, drop=False), images, goal, threat)
    gained = goal.margin(model(images)) - goal.margin(model(points))
    for row in range(len(images)):
        away = (weight[1 - labels[row]] - weight[labels[row]]).numpy()
        best = torch.tensor(linear_optimum("l2", away, images[row].flatten().numpy(), threat.epsilon)).view(
            1, 1, 10, 10
        )
        possible = goal.margin(model(images))[row] - goal[torch.tensor([row])].margin(model(best))
        assert 0.75 * possible < gained[row] <= possible


def share(change: int) -> float:
    """The paper's schedule, as it stands in its supplement."""
    table = [(10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128), (8000, 256)]
    return 0.8 / next((part for last, part in table if change <= last), 512)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 6, 17)], ids=str)
def test_linf_replayed(shape: tuple[int, int, int], rescale: bool, linear: Linear, make_victim: Make) -> None:
    """Every point asked about differs from the best before it by one square of the schedule's side, each channel of
    which is at a corner of the ball; the best of all is returned."""
    images, labels, weight, bias = scene(shape, classes=5)
    model, goal = Watched(linear(weight, bias)), Goal(labels)
    made = Square(queries=600, rescale=rescale)
    result = attack(made, make_victim(model, images, drop=False), images, goal, THREATS[0])
    low, high = (images - 0.2).clamp(min=0), (images + 0.2).clamp(max=1)
    start = model.points[0]
    assert torch.equal(start, torch.where((start == high).all(2, keepdim=True), high, low)), "stripes are vertical"
    assert (start == high).all(2).double().mean().item() == pytest.approx(0.5, abs=0.2)
    best, height = start.clone(), goal.margin(model.logits[0])
    changed = torch.zeros(shape[1:], dtype=torch.bool)
    for change, (points, logits) in enumerate(zip(model.points[1:], model.logits[1:], strict=True)):
        number = change * 10_000 / 600 if rescale else change
        side = min(max(round(math.sqrt(share(number) * shape[1] * shape[2])), 1), *shape[1:])
        assert ((points == low) | (points == high)).all()
        for row in range(len(images)):
            places = (points[row] != best[row]).any(0)
            changed |= places
            assert places.any(), "a change that changes nothing is a query lost"
            top, left = (int(axis.min()) for axis in places.nonzero(as_tuple=True))
            bottom, right = (int(axis.max()) for axis in places.nonzero(as_tuple=True))
            assert max(bottom - top, right - left) < side
        margin = goal.margin(logits)
        better = margin < height
        best[better], height[better] = points[better], margin[better]
    assert torch.equal(result, best)
    assert changed.all(), "the last row and column too"


def test_l2_keeps_all_of_the_ball(linear: Linear, make_victim: Make) -> None:
    """Away from 0 and 1 nothing is clipped, so that every point asked about lies on the sphere; where there is
    clipping, inside it. A change is two squares, and what is returned is the best."""
    images, labels, weight, bias = scene((3, 12, 15), classes=5)
    images[:2] = 0.4 + 0.2 * images[:2]
    model, goal, threat = Watched(linear(weight, bias)), Goal(labels), ThreatModel(norm="l2", epsilon=0.3)
    result = attack(Square(queries=800), make_victim(model, images, drop=False), images, goal, threat)
    best, height = model.points[0].clone(), goal.margin(model.logits[0])
    inside = []
    for change, (points, logits) in enumerate(zip(model.points, model.logits, strict=True)):
        distance = threat.distance(points, images)
        assert (distance[:2] - 0.3).abs().max() < 1e-9
        assert distance.max() < 0.3 + 1e-9
        inside.append(distance[2:].min().item())
        side = min(L2Squares.fitting(round(math.sqrt(share(change - 1) * 12 * 15))), 12)
        assert (points != best).any(1).flatten(1).sum(1).max() <= 2 * side**2
        margin = goal.margin(logits)
        better = margin < height
        best[better], height[better] = points[better], margin[better]
    assert min(inside) < 0.3 - 1e-3, "the start was clipped"
    assert np.mean(inside[-100:]) > 0.27, "what clipping took comes back"
    assert torch.equal(result, best)


@pytest.mark.parametrize("queries", [1, 2, 5000, 10_000])
def test_the_sides_are_the_papers(queries: int) -> None:
    blocks = list(Square(queries=queries)._blocks(28, 28, LinfSquares.fitting))
    sides = [side for side, count in blocks for _ in range(count)]
    assert sides == [max(round(math.sqrt(share(change)) * 28), 1) for change in range(queries - 1)]
    assert max([count for _, count in blocks], default=0) <= 100, "of numbers drawn together"


@BOTH
def test_an_image_is_left_alone_once_it_fell(
    threat: ThreatModel, curved: nn.Module, images: Tensor, make_victim: Make
) -> None:
    """Against a search that goes on: the same queries until the first success, which is returned; none afterwards."""
    goal = Goal(curved(images).argmax(1))
    watched = Watched(curved)
    kept = make_victim(watched, images, drop=False)
    attack(Square(queries=300), kept, images, goal, threat)
    reached = torch.stack([goal.reached(logits) for logits in watched.logits])
    first = torch.where(reached.any(0), reached.double().argmax(0) + 1, 300)
    victim = make_victim(curved, images)
    result = attack(Square(queries=300), victim, images, goal, threat)
    assert victim.counts.forwards.tolist() == first.tolist()
    fell = reached.any(0).nonzero().squeeze(1).tolist()
    assert len({first[row].item() for row in fell}) > 2, "at different times"
    for row in fell:
        assert torch.equal(result[row], watched.points[int(first[row]) - 1][row])


@BOTH
@pytest.mark.parametrize(("shape", "drop"), [((1, 7, 4), True), ((3, 4, 4), False)], ids=["drop", "keep"])
def test_batch_and_order_change_no_bit(
    threat: ThreatModel, shape: tuple[int, int, int], drop: bool, linear: Linear, make_victim: Make
) -> None:
    images, _, weight, _ = scene(shape, classes=4, count=9)
    model = linear(weight, -0.5 * weight.sum(1))
    goal, threat = Goal(model(images).argmax(1)), threat.model_copy(update={"epsilon": threat.epsilon * 0.4})
    made = Square(queries=150, restarts=2 if drop else 1)

    def of(rows: Tensor) -> Tensor:
        victim = make_victim(model, images[rows], index=rows, drop=drop, max_queries=250 if drop else 120)
        return made.perturb(victim, images[rows], goal[rows], threat, Rng(0, rows, shape))

    whole = of(torch.arange(9))
    order = torch.tensor([4, 8, 0, 2, 7, 1, 6, 3, 5])
    assert torch.equal(of(order), whole[order])
    assert torch.equal(torch.cat([of(part) for part in order.split(2)]), whole[order])
    assert 0 < goal.reached(model(whole)).sum() < 9, "some go on to the end"


@BOTH
def test_seeds_images_and_restarts_draw_anew(threat: ThreatModel, make_victim: Make) -> None:
    images, goal = torch.full((3, 2, 6, 6), 0.5), Goal(torch.zeros(3, dtype=torch.int64))
    watched = Watched(nn.Flatten())
    one = attack(Square(queries=5, restarts=2), make_victim(watched, images, drop=False), images, goal, threat)
    other = attack(Square(queries=5), make_victim(nn.Flatten(), images, drop=False), images, goal, threat, seed=1)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(watched.points[0], watched.points[6]), "the restart's own start"


@BOTH
def test_of_restarts_without_drop_the_best_counts(
    threat: ThreatModel, curved: nn.Module, images: Tensor, make_victim: Make
) -> None:
    goal = Goal(curved(images).argmax(1))
    watched = Watched(curved)
    made = Square(queries=20, restarts=3)
    result = attack(made, make_victim(watched, images, drop=False), images, goal, threat)
    lowest = torch.stack([goal.margin(logits) for logits in watched.logits]).amin(0)
    torch.testing.assert_close(goal.margin(curved(result)), lowest, rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 9), (3, 9, 2), (4, 5, 5)], ids=str)
def test_any_shape_of_image(
    threat: ThreatModel, shape: tuple[int, int, int], linear: Linear, make_victim: Make
) -> None:
    """(4, 5, 5) is the smallest with five tiles a side; of one class too few nothing is asked."""
    images, labels, weight, bias = scene(shape, classes=3)
    goal, images = Goal(labels, (labels + 1) % 3), images.float()
    model = linear(weight.float(), bias.float())
    result = attack(Square(queries=200), make_victim(model, images, drop=False), images, goal, threat)
    start = attack(Square(queries=1), make_victim(model, images, drop=False), images, goal, threat)
    gained = goal.margin(model(start)) - goal.margin(model(result))
    assert (gained >= 0).all()
    assert gained.max() > 0


def test_an_aim_is_searched_for_and_any_error_accepted(linear: Linear, make_victim: Make) -> None:
    """Towards class 2, which is out of reach; class 1 is reached on the way and is enough."""
    images = torch.full((5, 1, 4, 4), 0.5, dtype=torch.float64)
    weight = torch.stack([torch.zeros(16), torch.linspace(-1, 1, 16), torch.zeros(16)]).double()
    model = linear(weight, torch.tensor([0.0, -0.8, -50.0]).double())
    labels = torch.zeros(5, dtype=torch.int64)
    goal = Goal(labels).aim(labels + 2)
    result = attack(Square(queries=500), make_victim(model, images), images, goal, THREATS[0])
    assert goal.reached(model(result)).any()


def test_what_it_refuses(images: Tensor, make_victim: Make) -> None:
    goal, rng = Goal(torch.zeros(8, dtype=torch.int64)), Rng(0, torch.arange(8), (3, 4, 4))
    with pytest.raises(InputError, match="epsilon is inf"):
        Square().perturb(make_victim(nn.Flatten(), images), images, goal, ThreatModel(norm="l2", epsilon=math.inf), rng)
    for size in (0, 1.1, math.nan):
        with pytest.raises(InputError, match="start_size"):
            Square(start_size=size)
    assert Square().norms == {"linf", "l2"}
    assert Square().access == "logits"
