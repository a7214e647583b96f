"""FGSM and BIM: one step, and several, along the sign of the gradient."""

from collections.abc import Iterable

from torch import Tensor

from guard import LOSSES, Amount, Attack, Goal, IterativeAttack, LossName, Memory, Now, Rng, ThreatModel, Victim, hookimpl


class FGSM(Attack):
    """One step of length epsilon along the gradient's sign (for l2 and l1 along its steepest direction)."""

    name = "fgsm"
    paper = "Goodfellow, Shlens, Szegedy: Explaining and harnessing adversarial examples, ICLR 2015"

    loss: LossName = "cross-entropy"
    """What the step increases."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`."""
        gradient, _, _ = victim.gradient(images, goal, LOSSES[self.loss])
        return threat.project(images + threat.steepest_ascent(gradient, threat.epsilon, images), images)


class BIM(IterativeAttack):
    """FGSM in small steps from the image (I-FGSM), projected after each.

    The paper's step is 1/255; here it is epsilon / steps unless `step_size` says otherwise, so that the last point can
    reach the border. A second restart, which the paper does not have, starts at random.
    """

    name = "bim"
    paper = "Kurakin, Goodfellow, Bengio: Adversarial examples in the physical world, ICLR workshop 2017"

    step_size: Amount | None = None
    """Length of a step; epsilon / steps where left out."""
    loss: LossName = "cross-entropy"
    """What the steps increase."""

    def start(
        self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
    ) -> tuple[Tensor, Memory]:
        """The image itself; a later restart starts at random."""
        return (images if restart == 0 else threat.random_start(images, rng)), {}

    def gradient(self, victim: Victim, point: Tensor, goal: Goal, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Of the chosen loss."""
        return victim.gradient(point, goal, LOSSES[self.loss])

    def move(self, now: Now, memory: Memory) -> Tensor:
        """One step of steepest ascent."""
        size = now.threat.epsilon / self.steps if self.step_size is None else self.step_size
        return now.point + now.threat.steepest_ascent(now.gradient, size, now.point)


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [FGSM, BIM]
