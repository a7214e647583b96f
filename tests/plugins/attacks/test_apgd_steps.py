"""How APGD's images judge their steps, and in l1 their sparsity."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from guard_plugins.attacks.apgd import APGD, checkpoints, judge_progress
from guard_plugins.attacks.apgd_l1 import judge_sparsity, sparse_step
from torch import Tensor, nn

from guard import Goal, Now, Rng, ThreatModel, Victim

Make = Callable[..., Victim]


@pytest.fixture
def goal(curved: nn.Module, images: Tensor) -> Goal:
    return Goal(curved(images).argmax(1))


def test_checkpoints_are_the_papers() -> None:
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert checkpoints(3) == {1: 1, 2: 1}
    assert checkpoints(1) == {}


def test_a_step_is_halved_where_few_steps_rose_or_the_best_loss_is_what_it_was(images: Tensor, goal: Goal) -> None:
    """In the last 22 steps of 100: 17 rises; 16; 17 and no better best, not halved before; the same, halved before."""
    images, goal = images[:4], goal[torch.arange(4)]
    loss = torch.tensor([1.0, 1, 1, 1]).double()
    memory = {
        "loss": torch.tensor([0.0, 2, 0, 0]).double(),  # the step judged now is a rise, but for the second
        "rises": torch.full((4,), 16).double(),
        "best_loss": torch.tensor([3.0] * 4).double(),
        "judged": torch.tensor([2.0, 2, 3, 3]).double(),
        "halved": torch.tensor([False, False, False, True]),
        "size": torch.tensor([0.4] * 4).double(),
    }
    now = Now(images, images, loss, loss, images, goal, ThreatModel(norm="linf", epsilon=0.2), step=21)
    assert judge_progress(replace(now, loss=torch.zeros(4)), dict(memory, rises=torch.zeros(4)), 100) is None
    stalled = judge_progress(replace(now, step=22), memory, 100)
    assert stalled is not None
    assert stalled.tolist() == [False, True, True, False]
    torch.testing.assert_close(memory["size"], torch.tensor([0.4, 0.2, 0.2, 0.4]).double())
    assert memory["rises"].tolist() == [0.0] * 4
    assert memory["judged"].tolist() == [3.0] * 4
    assert memory["halved"].tolist() == stalled.tolist()


def test_the_first_step_is_compared_with_the_start(
    make_rng: Callable[..., Rng], make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    threat = ThreatModel(norm="linf", epsilon=0.2)
    _, memory = APGD().start(make_victim(curved, images), images, goal, threat, make_rng(images), 0)
    loss = torch.linspace(-1, 1, 8).double()
    now = Now(images, images, loss, loss, images, goal, threat, step=0)
    judge_progress(now, memory, 100)
    assert memory["rises"].tolist() == [0.0] * 8
    judge_progress(replace(now, loss=loss.flip(0), step=1), memory, 100)
    assert memory["rises"].tolist() == [1.0] * 4 + [0.0] * 4


def test_in_l1_a_step_moves_the_largest_entries_alike() -> None:
    gradient = torch.tensor([[3.0, -1, 0.5, -4, 2], [0.0] * 5], dtype=torch.float64).view(2, 1, 1, 5)
    memory = {"size": torch.tensor([0.6, 0.6], dtype=torch.float64), "chosen": torch.tensor([2, 2])}
    step = sparse_step(gradient, memory).flatten(1)
    torch.testing.assert_close(step, torch.tensor([[0.3, 0, 0, -0.3, 0], [0.0] * 5], dtype=torch.float64))


def test_in_l1_a_sparser_best_point_brings_the_full_step_back(images: Tensor, goal: Goal) -> None:
    threat, moved = ThreatModel(norm="l1", epsilon=3.0), images.clone()
    moved.view(8, 48)[:, :39] += 0.1
    size, before = torch.tensor([3.0, 1, 0.31, 1, 1, 1, 1, 1]).double(), torch.tensor([42] * 2 + [40] * 6)
    memory = {"best": moved, "size": size, "chosen": before, "moved": before}
    now = Now(moved, moved, size, size, images, goal, threat, step=4)
    assert judge_sparsity(replace(now, step=5), memory, 100) is None
    sparser = judge_sparsity(now, memory, 100)
    assert sparser is not None
    assert sparser.tolist() == [True, True] + [False] * 6
    torch.testing.assert_close(memory["size"], torch.tensor([3, 3, 0.3] + [1 / 1.5] * 5).double())
    assert memory["chosen"].tolist() == [26] * 8
    assert memory["moved"].tolist() == [39] * 8
