"""What counts as reached, to the tie and the NaN."""

import pytest
import torch

from guard import Goal
from guard.goal import correct, lead

NAN = float("nan")
LOGITS = torch.tensor([[3.0, 1.0, 2.0], [2.0, 2.0, 0.0], [0.0, 1.0, 5.0], [NAN, 1.0, 0.0], [1.0, NAN, 0.0]])


def test_untargeted_a_tie_is_an_error_and_nan_is_nothing() -> None:
    goal = Goal(torch.zeros(5, dtype=torch.int64))
    assert goal.reached(LOGITS).tolist() == [False, True, True, False, False]
    assert goal.margin(LOGITS).tolist()[:3] == [1, 0, -5]


def test_targeted_a_tie_does_not_reach_the_target() -> None:
    goal = Goal(torch.zeros(5, dtype=torch.int64), torch.tensor([2, 1, 2, 1, 1]))
    assert goal.reached(LOGITS).tolist() == [False, False, True, False, False]
    assert goal.margin(LOGITS).tolist()[:3] == [1, 0, -4]


def test_correct_needs_the_label_alone_on_top() -> None:
    assert correct(LOGITS, torch.tensor([0, 0, 2, 1, 0])).tolist() == [True, False, True, False, False]


def test_lead_by_hand() -> None:
    assert lead(LOGITS[:3], torch.tensor([0, 2, 1])).tolist() == [1, -2, -4]
    assert lead(torch.tensor([[0.0, -float("inf")]]), torch.tensor([0])).tolist() == [float("inf")]


@pytest.mark.parametrize("targets", [None, torch.tensor([1, 2, 1, 1, 1])])
def test_margin_is_positive_exactly_while_the_goal_is_open(targets: torch.Tensor | None) -> None:
    logits = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)).round()  # with many ties
    goal = Goal(torch.zeros(5, dtype=torch.int64), targets)[torch.arange(2000) % 5]
    margin, reached = goal.margin(logits), goal.reached(logits)
    assert (margin[reached] <= 0).all()
    assert (margin[~reached] >= 0).all()
    top = logits == logits.amax(1, keepdim=True)
    if targets is None:
        assert torch.equal(reached, ~(top[:, 0] & (top.sum(1) == 1)))
    else:
        assert torch.equal(reached, top.gather(1, goal.targets[:, None]).squeeze(1) & (top.sum(1) == 1))


def test_selection_keeps_labels_targets_and_aims_together() -> None:
    goal = Goal(torch.arange(4), torch.arange(4) + 10, torch.arange(4) + 20)
    mask, repeated = goal[torch.tensor([False, True, False, True])], goal[torch.tensor([2, 2])]
    assert (mask.labels.tolist(), mask.targets.tolist(), mask.aims.tolist()) == ([1, 3], [11, 13], [21, 23])
    assert (repeated.labels.tolist(), repeated.aims.tolist(), len(repeated)) == ([2, 2], [22, 22], 2)
    assert goal[torch.tensor([0])].towards.tolist() == [20]
    assert Goal(torch.arange(4))[torch.tensor([0])].towards is None


def test_an_aim_moves_losses_and_leaves_what_is_reached() -> None:
    untargeted = Goal(torch.tensor([0]))
    aimed = untargeted.aim(torch.tensor([2]))
    logits = torch.tensor([[1.0, 2.0, 0.0]])
    assert aimed.reached(logits).item()
    assert aimed.margin(logits).item() == -1
    assert aimed.towards.tolist() == [2]
    targeted = Goal(torch.tensor([0]), torch.tensor([1])).aim(torch.tensor([2]))
    assert targeted.reached(logits).item()
    assert targeted.towards.tolist() == [2]
