"""A cascade: each member gets what is left, and what it cost and broke stands under its name."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from guard import Attack, Cascade, ContractError, Cost, Goal, Rng, ThreatModel, Victim

Make = Callable[..., Victim]
THREAT = ThreatModel(norm="linf", epsilon=1)


class First(nn.Module):
    """Class 1 where the first value exceeds the second."""

    def forward(self, points: Tensor) -> Tensor:
        flat = points.flatten(1)
        return torch.stack([flat[:, 1], flat[:, 0]], 1)


class Put(Attack):
    """Asks once, and puts a height into the first value."""

    name = "put"

    height: float = 0.5

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        assert len(victim) == len(images) == len(goal) == len(rng) > 0
        victim.gradient(images, goal)
        return images.index_fill(3, torch.tensor([0]), self.height)

    def cost(self, num_classes: int) -> Cost:
        return Cost(1, 1)


class Ladder(Cascade):
    """Ever higher."""

    name = "ladder"

    def members(self, threat: ThreatModel) -> Sequence[tuple[str, Attack]]:
        return [("low", Put(height=0.3)), ("middle", Put(height=0.6)), ("high", Put(height=0.9))]


def batch(*heights: float) -> tuple[Tensor, Goal]:
    """Images (0, height) of class 0."""
    images = torch.zeros(len(heights), 1, 1, 2, dtype=torch.float64)
    images[:, 0, 0, 1] = torch.tensor(heights)
    return images, Goal(torch.zeros(len(heights), dtype=torch.int64))


def test_each_member_gets_what_the_others_left_and_is_counted_alone(make_victim: Make, make_rng: Make) -> None:
    images, goal = batch(0.5, 0.2, 0.95, 0.8)
    victim = make_victim(First(), images)
    points = Ladder().perturb(victim, images, goal, THREAT, make_rng(images))
    assert points[:, 0, 0, 0].tolist() == [0.6, 0.3, 0.9, 0.9]
    parts = victim.counts.parts
    assert list(parts) == ["low", "middle", "high"]
    assert [parts[name].broke.tolist() for name in parts] == [
        [False, True, False, False],
        [True, False, False, False],
        [False, False, False, True],
    ]
    assert parts["low"].backwards.tolist() == [1, 1, 1, 1]
    assert parts["middle"].backwards.tolist() == [1, 0, 1, 1]
    assert parts["high"].backwards.tolist() == [0, 0, 1, 1]
    assert victim.counts.forwards.tolist() == [4, 2, 6, 6]  # one each, and one to judge after each
    assert Ladder().cost(2) == Cost(6, 3)


def test_once_nothing_is_left_no_member_is_asked(make_victim: Make, make_rng: Make) -> None:
    images, goal = batch(0.1, 0.2)
    victim = make_victim(First(), images)
    Ladder().perturb(victim, images, goal, THREAT, make_rng(images))
    assert list(victim.counts.parts) == ["low"]


def test_where_nothing_may_be_dropped_the_furthest_point_counts(make_victim: Make, make_rng: Make) -> None:
    images, goal = batch(0.5, 0.2)
    victim = make_victim(First(), images, drop=False)
    points = Ladder().perturb(victim, images, goal, THREAT, make_rng(images))
    assert points[:, 0, 0, 0].tolist() == [0.9, 0.9]


def test_a_cascade_with_a_member_that_names_no_cost_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Put, "cost", Attack.cost)
    assert Ladder().cost(2) is None


class Twice(Cascade):
    """Two members of one name."""

    name = "twice"

    def members(self, threat: ThreatModel) -> Sequence[tuple[str, Attack]]:
        return [("put", Put(height=0.3)), ("put", Put(height=0.6))]


def test_what_shares_a_name_is_numbered(make_victim: Make, make_rng: Make) -> None:
    images, goal = batch(0.2, 0.5, 0.95)
    victim = make_victim(First(), images)
    Twice(after=Put(height=0.1)).perturb(victim, images, goal, THREAT, make_rng(images))
    assert {name: int(part.broke.sum()) for name, part in victim.counts.parts.items()} == {
        "put": 0,
        "put#2": 1,
        "put#3": 1,
    }
    assert [int(part.tried.sum()) for part in victim.counts.parts.values()] == [3, 3, 2]


def test_a_member_that_leaves_the_ball_and_an_empty_cascade_are_errors(make_victim: Make, make_rng: Make) -> None:
    images, goal = batch(0.95)

    class Empty(Twice):
        def members(self, threat: ThreatModel) -> Sequence[tuple[str, Attack]]:
            return []

    with pytest.raises(ContractError, match="it has no members"):
        Empty().perturb(make_victim(First(), images), images, goal, THREAT, make_rng(images))
    tight = ThreatModel(norm="linf", epsilon=0.1)
    with pytest.raises(ContractError, match="its member 'low' returned what are no images inside linf"):
        Ladder().perturb(make_victim(First(), images), images, goal, tight, make_rng(images))


def test_a_member_gets_no_more_access_than_it_declares(make_victim: Make, make_rng: Make) -> None:
    images, goal = batch(0.95)

    class Sly(Put):
        access = "logits"

    class Trusting(Twice):
        def members(self, threat: ThreatModel) -> Sequence[tuple[str, Attack]]:
            return [("sly", Sly())]

    with pytest.raises(ContractError, match="access = 'logits' and asked the victim for gradients"):
        Trusting().perturb(make_victim(First(), images), images, goal, THREAT, make_rng(images))
