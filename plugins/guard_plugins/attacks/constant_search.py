"""The search for each image's smallest constant c that works, which C&W and L-BFGS share."""

import math
from abc import abstractmethod

import torch
from pydantic import PositiveInt
from torch import Tensor

from guard import Goal, MinimalAttack, Norm, Rng, ThreatModel, Victim


class ConstantSearch(MinimalAttack):
    """Base of the l2 attacks that minimise the distance plus c times a loss. A subclass writes `closest`."""

    norms = frozenset({"l2"})

    searches: PositiveInt = 9
    """Values of c that each image is tried with."""

    @abstractmethod
    def closest(self, victim: Victim, images: Tensor, goal: Goal, enough: float) -> Tensor:
        """The closest adversarial image found for each image; one that lies within `enough` is done."""

    def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: Norm, rng: Rng) -> Tensor:
        """See `MinimalAttack.nearest`."""
        return self.closest(victim, images, goal, 0.0)

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """The nearest point, projected. Where the victim allows it, an image that is found inside the ball is done."""
        enough = 0.0
        if victim.drop and math.isfinite(threat.epsilon):
            enough = threat.epsilon * (1 - 1e-5)  # so that the projection, in float64, leaves the point alone
        return threat.project(self.closest(victim, images, goal, enough), images)


class Bracket:
    """The search for each image's smallest constant that brings it to its goal: tenfold until one does, then halving
    what lies between the largest that failed and the smallest that did."""

    def __init__(self, images: Tensor, constant: float) -> None:
        self.constant = images.new_full((len(images),), constant)
        self._low, self._high = torch.zeros_like(self.constant), torch.full_like(self.constant, math.inf)

    def judge(self, reached: Tensor) -> None:
        """Choose the next constants from which of the present ones worked, bool (N,)."""
        self._high = torch.where(reached, self.constant, self._high)
        self._low = torch.where(reached, self._low, self.constant)
        middle = (self._low + self._high) / 2
        self.constant = torch.where(self._high.isinf(), (10 * self.constant).clamp(max=1e10), middle)


class Closest:
    """The closest point that reached its goal, for each image; the image itself as long as there is none."""

    def __init__(self, images: Tensor, already: Tensor) -> None:
        """`already` bool (N,): the images that are at their goal as they are."""
        self.points = images.clone()
        self.distance = images.new_full((len(images),), math.inf).masked_fill_(already, 0)

    def note(self, rows: Tensor, points: Tensor, distance: Tensor) -> None:
        """Remember points (n, C, H, W) that reached the goals of the images in `rows`, where they are closer."""
        closer = (distance < self.distance[rows]).nonzero().squeeze(1)
        self.points[rows[closer]], self.distance[rows[closer]] = points[closer], distance[closer]
