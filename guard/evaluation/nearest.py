"""Nearest: one run of a minimum-distance attack answers every epsilon."""

import math

from torch import Tensor

from guard.attack import Attack, MinimalAttack
from guard.goal import Goal
from guard.rng import Rng
from guard.threat import Norm, ThreatModel
from guard.victim import Access, Victim


class Nearest(Attack):
    """A minimum-distance attack asked for its nearest points, whatever the ball."""

    attack: MinimalAttack
    """Whose points."""

    @property
    def access(self) -> Access:  # type: ignore[override]
        """The attack's."""
        return self.attack.access

    @property
    def bf16(self) -> bool:  # type: ignore[override]
        """The attack's."""
        return self.attack.bf16

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """The nearest points; `threat` gives the norm only."""
        return self.attack.nearest(victim, images, goal, threat.norm, rng)


def unbounded(norm: Norm) -> ThreatModel:
    """A ball of that norm that holds every image."""
    return ThreatModel(norm=norm, epsilon=1 if norm == "linf" else math.inf)
