"""Answer: how a victim classifies points, over many draws where it draws."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from guard.evaluation.store import Arrays
from guard.goal import Goal, correct

SELECTION = " on selection draws"
"""Ends the names of the shares that the attacker of a randomized victim chooses by."""


@dataclass(frozen=True)
class Answer:
    """Of each point, over the draws (one draw of a victim that does not draw)."""

    correct: Tensor
    """Share of the draws predicted as the label, float64 (N,)."""
    reached: Tensor
    """Share of the draws that reach the goal, float64 (N,)."""
    prediction: Tensor
    """What is predicted most often, int64 (N,); the lowest class of several."""

    @classmethod
    def of(cls, draws: Iterable[Tensor], goal: Goal) -> "Answer":
        """From the logits (N, K) of each draw."""
        right, reached, votes, count = torch.zeros(()), torch.zeros(()), torch.zeros(()), 0
        for logits in draws:
            right = right + correct(logits, goal.labels).double()
            reached = reached + goal.reached(logits).double()
            votes = votes + F.one_hot(logits.argmax(1), logits.shape[1])
            count += 1
        return cls(right / count, reached / count, votes.argmax(1))


def shares(draws: int, name: str, scored: Tensor, chosen: Tensor, clean: Arrays | None = None) -> dict[str, Tensor]:
    """What an outcome keeps under `name`: flags bool (N,); over several draws the share of the scoring draws, and
    beside it that on selection draws, both of the `clean` image where the attacker chooses to leave that as it is."""
    if draws == 1:
        return {name: scored > 0.5}
    if clean is not None:
        before = [torch.from_numpy(clean["correct" + end]).to(scored) for end in ("", SELECTION)]
        alone = before[1] < chosen
        scored, chosen = torch.where(alone, before[0], scored), torch.where(alone, before[1], chosen)
    return {name: scored, name + SELECTION: chosen}
