"""FGSM and BIM: one step, and several, along the sign of the gradient."""

import math
from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from guard import (
    LOSSES,
    Amount,
    Attack,
    Cost,
    Goal,
    InputError,
    IterativeAttack,
    LossName,
    Memory,
    Now,
    Rng,
    ThreatModel,
    Victim,
    hookimpl,
)


class FGSM(Attack):
    """One step of length epsilon along the gradient's sign (for l2 and l1 along its steepest direction)."""

    name = "fgsm"
    paper = "Goodfellow, Shlens, Szegedy: Explaining and harnessing adversarial examples, ICLR 2015"

    loss: LossName = "cross-entropy"
    """What the step increases."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`."""
        if math.isinf(threat.epsilon):
            raise InputError("epsilon is inf: attack 'fgsm' takes one step of that length. Give a finite epsilon")
        gradient, _, _ = victim.gradient(images, goal, LOSSES[self.loss])
        return threat.project(images + threat.steepest_ascent(gradient, threat.epsilon, images), images)

    def cost(self, num_classes: int) -> Cost:
        """One gradient."""
        return Cost(1, 1)


class SteepestAscent(IterativeAttack):
    """Steps of one length, each along the steepest ascent of a loss: what BIM and PGD share."""

    reach: ClassVar[float]
    """How long all steps are together, in units of epsilon, where no step size is given."""
    bf16 = True

    step_size: Amount | None = None
    """Length of a step; where left out, epsilon / steps (bim and its kind) or 2.5 epsilon / steps (pgd)."""
    loss: LossName = "cross-entropy"
    """What the steps increase."""

    def gradient(self, victim: Victim, point: Tensor, goal: Goal, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Of the chosen loss."""
        return victim.gradient(point, goal, LOSSES[self.loss])

    def move(self, now: Now, memory: Memory) -> Tensor:
        """One step of steepest ascent."""
        step = now.threat.steepest_ascent(self.direction(now, memory), self._length(now.threat), now.point)
        return step.add_(now.point)

    def direction(self, now: Now, memory: Memory) -> Tensor:
        """What to ascend along: the gradient by default."""
        return now.gradient

    def _length(self, threat: ThreatModel) -> float:
        if self.step_size is not None:
            return self.step_size
        if math.isinf(threat.epsilon):
            raise InputError(f"epsilon is inf: give attack '{self.name}' a step_size")
        return self.reach * threat.epsilon / self.steps


class BIM(SteepestAscent):
    """FGSM in small steps from the image (I-FGSM), projected after each.

    The paper's step is 1/255; here it is epsilon / steps unless `step_size` says otherwise, so that the last point can
    reach the border. A second restart, which the paper does not have, starts at random.
    """

    name = "bim"
    paper = "Kurakin, Goodfellow, Bengio: Adversarial examples in the physical world, ICLR workshop 2017"
    reach = 1.0

    def start(
        self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
    ) -> tuple[Tensor, Memory]:
        """The image itself; a later restart starts at random."""
        return (images if restart == 0 else threat.random_start(images, rng)), {}


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [FGSM, BIM]
