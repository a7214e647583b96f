"""Random noise: the sanity baseline that every attack must beat."""

from collections.abc import Iterable

import torch
from pydantic import PositiveInt
from torch import Tensor

from guard import Attack, Cost, Goal, Rng, ThreatModel, Victim, hookimpl


class Noise(Attack):
    """Uniform draws from the ball: an image keeps the first that reaches its goal, else the last."""

    name = "noise"
    access = "logits"

    draws: PositiveInt = 100
    """How many draws each image gets."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`."""
        result = threat.random_start(images, rng)
        if not victim.drop:
            return result
        left = torch.arange(len(images), device=images.device)
        for draw in range(self.draws):
            remaining = victim.remaining
            if remaining is not None:
                left = left[remaining[left] > 0]
            if not len(left):
                break
            if draw:
                result[left] = threat.random_start(images[left], rng[left])
            logits = victim[left].logits(result[left])
            left = left[~victim[left].reached(result[left], goal[left], logits)]
        return result

    def cost(self, num_classes: int) -> Cost:
        """A forward for each draw."""
        return Cost(self.draws, 0)


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [Noise]
