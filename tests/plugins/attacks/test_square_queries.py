"""Square: what it asks, to the query, with and without a budget."""

from collections.abc import Callable

import pytest
import torch
from guard_plugins.attacks.square import Square
from torch import Tensor, nn

from guard import ContractError, Cost, Goal, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
THREATS = [ThreatModel(norm="linf", epsilon=0.2), ThreatModel(norm="l2", epsilon=0.9)]
BOTH = pytest.mark.parametrize("threat", THREATS, ids=str)


def attack(made: Square, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel) -> Tensor:
    return made.perturb(victim, images, goal, threat, Rng(0, torch.arange(len(images)), images.shape[1:]))


def never(classes: int = 3) -> nn.Module:
    """A model that sees class 0 and a slightly different margin in every image."""

    class Never(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            rest = torch.zeros(len(images), classes - 1, dtype=images.dtype)
            return torch.cat([10 + images.flatten(1).sum(1, keepdim=True), rest], 1)

    return Never()


@BOTH
@pytest.mark.parametrize(("queries", "restarts"), [(1, 1), (2, 1), (150, 1), (40, 3)])
def test_an_image_that_never_falls_costs_what_is_stated(
    threat: ThreatModel, queries: int, restarts: int, images: Tensor, make_victim: Make
) -> None:
    victim = make_victim(never(), images, access="logits")
    made = Square(queries=queries, restarts=restarts)
    attack(made, victim, images, Goal(torch.zeros(8, dtype=torch.int64)), threat)
    assert made.cost(3) == Cost(queries * restarts + restarts - 1, 0)
    assert victim.counts.forwards.tolist() == [queries * restarts + restarts - 1] * 8
    assert victim.counts.backwards.tolist() == [0] * 8


@BOTH
@pytest.mark.parametrize("drop", [True, False], ids=["drop", "keep"])
@pytest.mark.parametrize("budget", [1, 37, 150])
def test_a_budget_is_spent_to_the_last_query_and_no_further(
    threat: ThreatModel, drop: bool, budget: int, images: Tensor, make_victim: Make
) -> None:
    goal = Goal(torch.zeros(8, dtype=torch.int64))
    victim = make_victim(never(), images, access="logits", max_queries=budget, drop=drop)
    result = attack(Square(queries=100), victim, images, goal, threat)
    assert victim.counts.forwards.tolist() == [min(budget, 100)] * 8
    free = attack(Square(queries=min(budget, 100)), make_victim(never(), images), images, goal, threat)
    assert torch.equal(result, free), "what was best when the budget was spent"


@BOTH
def test_images_with_different_budgets_left(threat: ThreatModel, images: Tensor, make_victim: Make) -> None:
    """One has been asked about before, one has nothing left at all."""
    victim, goal = make_victim(never(), images, max_queries=50), Goal(torch.zeros(8, dtype=torch.int64))
    for row, times in ((2, 30), (5, 50)):
        for _ in range(times):
            victim[torch.tensor([row])].logits(images[row : row + 1])
    attack(Square(queries=40, restarts=2), victim, images, goal, threat)
    assert victim.counts.forwards.tolist() == [50] * 8
    with pytest.raises(ContractError):
        victim.logits(images)


@BOTH
def test_a_claim_is_confirmed(threat: ThreatModel, images: Tensor, make_victim: Make) -> None:
    """A faster execution that always claims success stops nothing."""

    class Claims(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return -never()(images)

    victim = make_victim(never(), images, search=Claims())
    attack(Square(queries=30), victim, images, Goal(torch.zeros(8, dtype=torch.int64)), threat)
    assert victim.counts.forwards.tolist() == [60] * 8, "30 queries, each with its confirmation"
