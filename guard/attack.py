"""Attack: what turns images into adversarial images, and the two bases that do most of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from guard.component import Component
from guard.goal import Goal
from guard.rng import Rng
from guard.threat import NORMS, Norm, ThreatModel
from guard.victim import Access, Victim

Memory = dict[str, Tensor]
"""What an iterative attack carries from step to step: tensors with one row per image."""


class Attack(Component, ABC):
    """An attack. A subclass names itself and writes `perturb`."""

    kind: ClassVar[str] = "attack"
    norms: ClassVar[frozenset[Norm]] = NORMS
    """The norms it can attack in."""
    access: ClassVar[Access] = "gradients"
    """The most it asks of the victim: gradients, logits, labels, or transfer (nothing)."""

    @abstractmethod
    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """Return adversarial images, shaped like `images` (N, C, H, W), in [0, 1] and inside the threat's ball.

        Nothing is corrected afterwards: what breaks the contract makes the cell INVALID. Each image is treated on its
        own, so that the result does not depend on the batch.
        """


@dataclass(frozen=True)
class Now:
    """What an iterative attack knows when it moves."""

    point: Tensor
    gradient: Tensor
    loss: Tensor
    logits: Tensor
    images: Tensor
    goal: Goal
    threat: ThreatModel
    step: int
    """Number of this step, from 0."""


class IterativeAttack(Attack):
    """An attack that follows a gradient step by step. A subclass writes `move`, and `start` or `gradient` if need be.

    The loop projects, drops images that have reached their goal (where the victim allows it) and restarts those that
    have not. An image's result is the first evaluated point that reached the goal, else its last point. Where nothing
    is dropped it is the last point, of the restart whose last point is furthest beyond the goal (or closest to it).
    """

    steps: PositiveInt = 10
    """Number of gradient steps."""
    restarts: PositiveInt = 1
    """Independent runs; each works on the images that the ones before it left."""

    def start(
        self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
    ) -> tuple[Tensor, Memory]:
        """The first point of each image, and what to carry along. A uniform draw from the ball by default; for l1,
        where such a draw is far from every corner, the first restart starts at the image."""
        if threat.norm == "l1" and restart == 0:
            return images, {}
        return threat.random_start(images, rng), {}

    def gradient(self, victim: Victim, point: Tensor, goal: Goal, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient, loss and logits at the point; of the cross-entropy by default."""
        return victim.gradient(point, goal)

    @abstractmethod
    def move(self, now: Now, memory: Memory) -> Tensor:
        """The next point; it need not lie in the ball. May write to `memory`."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`; the loop around the methods above."""
        result = images.clone()
        best = torch.full((len(images),), -float("inf"), dtype=images.dtype, device=images.device)
        left = torch.arange(len(images), device=images.device)
        for restart in range(self.restarts):
            last = restart + 1 == self.restarts
            point, rows = self._run(victim, images, goal, threat, rng.fold(restart), restart, left, result)
            if self.restarts == 1 or (victim.drop and last):
                result[rows] = point
                break
            if not len(rows):
                break
            logits = victim[rows].logits(point)
            if victim.drop:
                result[rows] = point
                left = rows[~goal[rows].reached(logits)]
                if not len(left):
                    break
            else:
                height = -goal.margin(logits).to(best)
                better = height > best
                result[better], best[better] = point[better], height[better]
        return result

    def _run(
        self,
        victim: Victim,
        images: Tensor,
        goal: Goal,
        threat: ThreatModel,
        rng: Rng,
        restart: int,
        rows: Tensor,
        result: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One run on the images in `rows`; writes points that reached the goal, returns the others and their rows."""
        if len(rows) < len(images):
            victim, images, goal, rng = victim[rows], images[rows], goal[rows], rng[rows]
        point, memory = self.start(victim, images, goal, threat, rng, restart)
        for step in range(self.steps):
            gradient, loss, logits = self.gradient(victim, point, goal, memory)
            if victim.drop:
                open_ = ~goal.reached(logits)
                if not open_.all():
                    result[rows[~open_]] = point[~open_]
                    rows, point, images = rows[open_], point[open_], images[open_]
                    if not len(rows):
                        break
                    gradient, loss, logits = gradient[open_], loss[open_], logits[open_]
                    memory = {key: value[open_] for key, value in memory.items()}
                    victim, goal = victim[open_], goal[open_]
            now = Now(point, gradient, loss, logits, images, goal, threat, step)
            point = threat.project(self.move(now, memory), images)
        return point, rows


class MinimalAttack(Attack):
    """An attack that looks for the closest adversarial image, free of any ball. A subclass writes `nearest`."""

    @abstractmethod
    def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: Norm, rng: Rng) -> Tensor:
        """The closest adversarial image found for each image, in [0, 1]; the image itself where none was found."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """The nearest point where it lies in the ball, elsewhere its projection."""
        return threat.project(self.nearest(victim, images, goal, threat.norm, rng), images)
