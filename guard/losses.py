"""Losses an adversary maximises: functions of (logits (N, K), goal), one value per image.

Each moves away from the label, or towards the goal's target or aim where there is one.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from guard.goal import Goal, lead

Loss = Callable[[Tensor, Goal], Tensor]
LossName = Literal["cross-entropy", "margin", "dlr", "probability"]


def cross_entropy(logits: Tensor, goal: Goal) -> Tensor:
    """Cross-entropy of the label; towards a target, minus the cross-entropy of the target."""
    if goal.towards is None:
        return F.cross_entropy(logits, goal.labels, reduction="none")
    return -F.cross_entropy(logits, goal.towards, reduction="none")


def margin(logits: Tensor, goal: Goal) -> Tensor:
    """The largest other logit less the label's (Carlini and Wagner 2017); towards a target, its logit less the
    largest other one, or less the label's where the goal only aims at it."""
    if goal.towards is None:
        return -lead(logits, goal.labels)
    if goal.aims is None:
        return lead(logits, goal.towards)
    return _of(logits, goal.towards) - _of(logits, goal.labels)


def dlr(logits: Tensor, goal: Goal) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020): the margin over the spread of the top logits.

    Untargeted it needs 3 classes and towards a target 4; with fewer, the plain margin stands in.
    """
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    if goal.towards is None:
        if logits.shape[1] < 3:
            return margin(logits, goal)
        return -lead(logits, goal.labels) / (top[:, 0] - top[:, 2] + 1e-12)
    if logits.shape[1] < 4:
        return margin(logits, goal)
    spread = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3])
    return (_of(logits, goal.towards) - _of(logits, goal.labels)) / (spread + 1e-12)


def probability(logits: Tensor, goal: Goal) -> Tensor:
    """The target's probability, or minus the label's."""
    probabilities = logits.softmax(1)
    if goal.towards is None:
        return -_of(probabilities, goal.labels)
    return _of(probabilities, goal.towards)


def _of(values: Tensor, classes: Tensor) -> Tensor:
    return torch.gather(values, 1, classes[:, None]).squeeze(1)


LOSSES: dict[LossName, Loss] = {
    "cross-entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "probability": probability,
}
