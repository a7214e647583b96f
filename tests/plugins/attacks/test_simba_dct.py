"""SimBA-DCT: its walk replayed query by query, closed forms on linear models, and budgets to the query."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
import torch
from guard_plugins.attacks.simba_dct import SimBADCT
from torch import Tensor, nn

from guard import Cost, Goal, Norm, Rng, ThreatModel, Victim, dct2

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Linear = Callable[..., nn.Module]
THREATS = [
    ThreatModel(norm="linf", epsilon=0.15),
    ThreatModel(norm="l2", epsilon=0.6),
    ThreatModel(norm="l1", epsilon=4),
]
EACH_NORM = pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
FREE = ThreatModel(norm="l2", epsilon=math.inf)
ZEROS = Goal(torch.zeros(8, dtype=torch.int64))


class Watched(nn.Module):
    """A model that notes every batch it is asked about, and the probabilities it answered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.points: list[Tensor] = []
        self.probabilities: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.points.append(images.clone())
        logits: Tensor = self.model(images)
        self.probabilities.append(logits.softmax(1))
        return logits


def attack(made: SimBADCT, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, seed: int = 0) -> Tensor:
    rng = Rng(seed, torch.arange(len(images)), tuple(images.shape[1:]))
    adversarial = made.perturb(victim, images, goal, threat, rng)
    assert adversarial.dtype == images.dtype
    assert threat.contains(adversarial, images).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    return adversarial


def grey(count: int, *shape: int) -> Tensor:
    return torch.full((count, *shape), 0.5, dtype=torch.float64)


def firm(linear: Linear, *shape: int, lead: float = 20.0) -> tuple[nn.Module, Tensor]:
    """A linear model that sees class 0 everywhere, and its slope from class 1 to class 0, (C, H, W)."""
    slope = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.stack([slope.flatten() / 2, -slope.flatten() / 2])
    bias = torch.tensor([lead, 0.0], dtype=torch.float64) - weight.sum(1) / 2
    return linear(weight, bias), slope


@EACH_NORM
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_the_walk_is_the_papers_query_by_query(
    threat: ThreatModel, targeted: bool, curved: nn.Module, images: Tensor, make_victim: Make
) -> None:
    labels = curved(images).argmax(1)
    goal = Goal(labels, (labels + 1) % 4 if targeted else None)
    queries, side, size = 60, 3, 0.17
    made = SimBADCT(queries=queries, dimension=side, step_size=size)
    adversarial = attack(made, make_victim(curved, images, drop=False), images, goal, threat)
    orders = Rng(0, torch.arange(8), (3, 4, 4)).uniform(shape=(3 * side * side,)).numpy().argsort(axis=1, kind="stable")
    aim = goal.labels if goal.targets is None else goal.targets
    for row in range(8):
        image, coefficients, asked = images[row : row + 1], np.zeros((3, 4, 4)), 0

        def ask(coefficients: np.ndarray) -> tuple[Tensor, float]:
            moved = torch.from_numpy(scipy.fft.idctn(coefficients, axes=(1, 2), norm="ortho"))[None]
            point = threat.project(image + moved, image)  # noqa: B023
            value = curved(point).softmax(1)[0, aim[row]].item()  # noqa: B023
            return point, -value if not targeted else value

        point, best = ask(coefficients)
        asked, turn = 1, 0
        while asked < queries:
            at = np.unravel_index(orders[row][turn % (3 * side * side)], (3, side, side))
            turn += 1
            for sign in (-1, 1):
                if asked == queries:
                    break
                step = np.zeros_like(coefficients)
                step[at] = sign * size
                there, value = ask(coefficients + step)
                asked += 1
                if value > best:
                    coefficients, point, best = coefficients + step, there, value
                    break
        torch.testing.assert_close(adversarial[row : row + 1], point, atol=1e-9, rtol=0)
        assert not torch.equal(point, image)


def test_each_step_kept_lowers_the_probability_and_adds_its_length(linear: Linear, make_victim: Make) -> None:
    """While each basis vector is met for the first time, kept steps are orthogonal and of one length."""
    images, size = grey(8, 3, 12, 9), 0.05
    model = Watched(firm(linear, 3, 12, 9)[0])
    attack(SimBADCT(queries=60, dimension=4, step_size=size), make_victim(model, images), images, ZEROS, FREE)
    probabilities = torch.stack(model.probabilities)[:, :, 0]
    lowest = probabilities.cummin(0).values
    kept = torch.cat([torch.zeros(1, 8, dtype=torch.bool), probabilities[1:] < lowest[:-1]])
    assert kept.sum(0).min() > 20
    for query, points in enumerate(model.points):
        outside = dct2(points - images)
        outside[..., :4, :4] = 0
        assert outside.abs().max() < 1e-12
        if query:
            steps = (kept[:query].sum(0) + 1).double()  # those kept before, and the one that is tried
            assert threat_length(points, images).tolist() == pytest.approx((size * steps.sqrt()).tolist())


def threat_length(points: Tensor, images: Tensor) -> Tensor:
    return (points - images).flatten(1).norm(dim=1)


@pytest.mark.parametrize("passes", [1, 3])
def test_a_linear_model_meets_each_frequency_against_its_slope(passes: int, linear: Linear, make_victim: Make) -> None:
    """One step in each pass, to the side where the label loses."""
    images, size = grey(8, 2, 6, 5), 0.02
    model, slope = firm(linear, 2, 6, 5)
    made = SimBADCT(queries=1 + 2 * passes * 2 * 9, dimension=3, step_size=size)
    victim = make_victim(model, images, drop=False)
    moved = dct2(attack(made, victim, images, ZEROS, FREE) - images)[..., :3, :3]
    steps = -dct2(slope)[..., :3, :3].sign() * size
    least, most = (moved / steps).amin((1, 2, 3)), (moved / steps).amax((1, 2, 3))
    assert (least > passes - 1e-6).all(), "a pass takes at most two queries a frequency"
    assert (most < 2 * passes + 1e-6).all(), "and at least one"


def test_a_confident_float32_model_still_says_which_way(linear: Linear, make_victim: Make) -> None:
    """Its probability is 1 in float32 at every point."""
    model, _ = firm(linear, 3, 8, 8, lead=25)
    model, images = model.float(), grey(4, 3, 8, 8).float()
    assert (model(images).softmax(1)[:, 0] == 1).all()
    goal, threat = Goal(torch.zeros(4, dtype=torch.int64)), ThreatModel(norm="l2", epsilon=1)
    adversarial = attack(SimBADCT(queries=40, step_size=0.05), make_victim(model, images), images, goal, threat)
    assert (model(adversarial).softmax(1)[:, 0] == 1).all()
    assert (goal.margin(model(images)) - goal.margin(model(adversarial)) > 0.5).all()


def test_a_step_that_reaches_the_goal_is_kept_whatever_the_probability(make_victim: Make) -> None:
    class Overtaken(nn.Module):
        """Darker images look less like class 2, more like class 0, and even more like class 1."""

        def forward(self, images: Tensor) -> Tensor:
            dark = 0.5 - images.mean((1, 2, 3))
            return torch.stack([0 * dark, 20 * dark - 0.1, -50 * dark - 0.01], 1)

    images, goal = grey(3, 1, 4, 4), Goal(torch.zeros(3, dtype=torch.int64))
    model = Overtaken()
    low = ThreatModel(norm="linf", epsilon=0.02)
    victim = make_victim(model, images)
    adversarial = attack(SimBADCT(step_size=0.04), victim, images, goal, low)
    assert goal.reached(model(adversarial)).all()
    assert (model(adversarial).softmax(1)[:, 0] > model(images).softmax(1)[:, 0]).all()
    assert victim.counts.forwards.tolist() == [2] * 3


@EACH_NORM
@pytest.mark.parametrize("queries", [1, 2, 37])
def test_an_image_that_never_falls_costs_what_is_stated(
    threat: ThreatModel, queries: int, linear: Linear, make_victim: Make
) -> None:
    images = grey(8, 3, 6, 6)
    victim = make_victim(firm(linear, 3, 6, 6)[0], images, access="logits")
    made = SimBADCT(queries=queries)
    attack(made, victim, images, ZEROS, threat)
    assert made.cost(3) == Cost(queries, 0)
    assert victim.counts.forwards.tolist() == [queries] * 8
    assert victim.counts.backwards.tolist() == [0] * 8


@EACH_NORM
@pytest.mark.parametrize("drop", [True, False], ids=["drop", "keep"])
@pytest.mark.parametrize("budget", [1, 20, 90])
def test_a_budget_is_spent_to_the_last_query_and_no_further(
    threat: ThreatModel, drop: bool, budget: int, linear: Linear, make_victim: Make
) -> None:
    images, (model, _) = grey(8, 3, 6, 6), firm(linear, 3, 6, 6)
    victim = make_victim(model, images, access="logits", max_queries=budget, drop=drop)
    result = attack(SimBADCT(queries=60), victim, images, ZEROS, threat)
    assert victim.counts.forwards.tolist() == [min(budget, 60)] * 8
    free = attack(SimBADCT(queries=min(budget, 60)), make_victim(model, images), images, ZEROS, threat)
    assert torch.equal(result, free), "what was best when the budget was spent"


def test_images_with_different_budgets_left(linear: Linear, make_victim: Make) -> None:
    images, (model, _) = grey(8, 3, 6, 6), firm(linear, 3, 6, 6)
    victim = make_victim(model, images, max_queries=50)
    for row, times in ((2, 30), (5, 50)):
        for _ in range(times):
            victim[torch.tensor([row])].logits(images[row : row + 1])
    result = attack(SimBADCT(), victim, images, ZEROS, FREE)
    assert victim.counts.forwards.tolist() == [50] * 8
    assert (result != images).flatten(1).any(1).tolist() == [True] * 5 + [False] + [True] * 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_breaks_what_it_can_and_stops_there(
    norm: Norm, curved: nn.Module, images: Tensor, make_victim: Make
) -> None:
    model, goal = Watched(curved), Goal(curved(images).argmax(1))
    victim = make_victim(model, images)
    threat = ThreatModel(norm=norm, epsilon={"linf": 0.2, "l2": 0.9}[norm])
    adversarial = attack(SimBADCT(queries=200, dimension=4), victim, images, goal, threat)
    reached = goal.reached(curved(adversarial))
    assert reached.sum() >= 3
    assert (victim.counts.forwards[~reached] == 200).all()
    assert (victim.counts.forwards[reached] < 200).all()
    seen = torch.cat(model.points)
    assert all((seen == point).flatten(1).all(1).any() for point in adversarial[reached])
