"""The door to the model: whom it charges for a query, and which claims it asks about again."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from guard import ContractError, Goal, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]


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
