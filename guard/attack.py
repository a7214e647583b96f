"""Attack: what turns images into adversarial images, and the two bases that do most of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

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


class Cost(NamedTuple):
    """The most that an attack asks of a victim for one image."""

    forwards: int
    backwards: int


class Attack(Component, ABC):
    """An attack. A subclass names itself and writes `perturb`."""

    kind: ClassVar[str] = "attack"
    norms: ClassVar[frozenset[Norm]] = NORMS
    """The norms it can attack in."""
    access: ClassVar[Access] = "gradients"
    """The most it asks of the victim: gradients, logits, labels, or transfer (nothing)."""
    estimate: ClassVar[bool] = False
    """Whether it stops at images that it takes for robust, so that its robust accuracy estimates a longer attack's."""
    bf16: ClassVar[bool] = False
    """Whether its gradients may be computed in bfloat16 where the user asks for that: it follows signs only, and stops
    at an image only where `victim.reached` says so."""

    @abstractmethod
    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """Return adversarial images, shaped like `images` (N, C, H, W), in [0, 1] and inside the threat's ball.

        Nothing is corrected afterwards: what breaks the contract makes the cell INVALID. Each image is treated on its
        own, so that the result does not depend on the batch.
        """

    def cost(self, num_classes: int) -> Cost | None:
        """The most it asks of the victim for one image that it may drop; None where it does not say."""
        return None


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

    def final(self, point: Tensor, memory: Memory) -> Tensor:
        """What a run ends with where nothing is dropped: its last point by default."""
        return point

    def cost(self, num_classes: int) -> Cost | None:
        """A forward and a backward for each step, and a forward between restarts."""
        steps = self.steps * self.restarts
        return Cost(steps + self.restarts - 1, steps)

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`; the loop around the methods above."""

        def run(restart: int, rows: Tensor) -> tuple[Tensor, Tensor]:
            return self.run(victim[rows], images[rows], goal[rows], threat, rng[rows].fold(restart), restart)

        return attempts(victim, images, goal, self.restarts, run)

    def run(
        self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
    ) -> tuple[Tensor, Tensor]:
        """One run: a point for each image, and the index of those not known to have reached the goal."""
        point, memory = self.start(victim, images, goal, threat, rng, restart)
        result, rows = torch.empty_like(images), torch.arange(len(images), device=images.device)
        spent = rows[:0]
        for step in range(self.steps):
            if victim.remaining is not None:
                able = victim.remaining > 0
                result[rows], spent = point, torch.cat([spent, rows[~able]])
                keep = able.nonzero().squeeze(1)
                rows, point, images, victim, goal = rows[keep], point[keep], images[keep], victim[keep], goal[keep]
                memory = {key: value[keep] for key, value in memory.items()}
            if not len(rows):
                break
            gradient, loss, logits = self.gradient(victim, point, goal, memory)
            if victim.drop:
                left = (~victim.reached(point, goal, logits)).nonzero().squeeze(1)
                if len(left) < len(rows):
                    result[rows] = point
                    rows, point, images, victim, goal = rows[left], point[left], images[left], victim[left], goal[left]
                    memory = {key: value[left] for key, value in memory.items()}
                    if not len(rows):
                        break
                    gradient, loss, logits = gradient[left], loss[left], logits[left]
            now = Now(point, gradient, loss, logits, images, goal, threat, step)
            point = threat.project(self.move(now, memory), images)
        result[rows] = point if victim.drop else self.final(point, memory)
        return result, torch.cat([rows, spent])


class MinimalAttack(Attack):
    """An attack that looks for the closest adversarial image, free of any ball. A subclass writes `nearest`."""

    @abstractmethod
    def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: Norm, rng: Rng) -> Tensor:
        """The closest adversarial image found for each image, in [0, 1]; the image itself where none was found."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """The nearest point where it lies in the ball, elsewhere its projection."""
        return within(threat, self.nearest(victim, images, goal, threat.norm, rng), images)


def within(threat: ThreatModel, points: Tensor, images: Tensor) -> Tensor:
    """Each point itself where it lies in the ball, elsewhere its projection."""
    inside = threat.contains(points, images).view(-1, 1, 1, 1)
    return torch.where(inside, points, threat.project(points, images))


Run = Callable[[int, Tensor], tuple[Tensor, Tensor]]


def attempts(
    victim: Victim,
    images: Tensor,
    goal: Goal,
    count: int,
    run: Run,
    credit: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Runs one after another: the point of the first that reached each image's goal, else of the last.

    `run(number, rows)` attacks the images in `rows`, an index int64 (n,), and returns a point for each and the index
    among them of those not known to have reached the goal. Where the victim does not let an attack stop at success,
    every run gets every image, and the point furthest beyond the goal (or closest to it) counts.
    `credit(number, rows)` is told which images each run brought to their goal; without it the last run is not judged.
    """
    result = images.clone()
    height = torch.full((len(images),), -float("inf"), dtype=images.dtype, device=images.device)
    left, done = torch.arange(len(images), device=images.device), torch.zeros_like(goal.labels, dtype=torch.bool)
    for number in range(count):
        if not len(left):
            break
        points, unknown = run(number, left)
        judged = credit is not None or number + 1 < count
        if victim.drop:
            result[left] = points
            if not judged:
                break
            known = torch.ones_like(left, dtype=torch.bool).index_fill(0, unknown, False)
            rest, points = left[unknown], points[unknown]
            budget = victim[rest].remaining
            if budget is not None:
                rest, points = rest[budget > 0], points[budget > 0]
            reached = torch.zeros_like(rest, dtype=torch.bool)
            if len(rest):
                reached = victim[rest].reached(points, goal[rest], victim[rest].logits(points))
            if credit is not None:
                credit(number, torch.cat([left[known], rest[reached]]))
            left = rest[~reached]
        elif count == 1:
            return points
        else:
            result = torch.where(height.isinf().view(-1, 1, 1, 1), points, result)
            able = left if victim.remaining is None else (victim.remaining > 0).nonzero().squeeze(1)
            if not len(able):
                break
            logits = victim[able].logits(points[able])
            margin = -goal[able].margin(logits).to(height)
            if credit is not None:
                reached = goal[able].reached(logits)
                credit(number, able[reached & ~done[able]])
                done[able] |= reached
            better = margin > height[able]
            rows = able[better]
            result[rows], height[rows] = points[rows], margin[better]
    return result
