"""MultiTargeted: PGD towards each wrong class in turn."""

from collections.abc import Iterable

from pydantic import PositiveInt
from torch import Tensor

from guard import Attack, Cost, Goal, LossName, Rng, ThreatModel, Victim, hookimpl
from guard_plugins.attacks.pgd import PGD
from guard_plugins.attacks.towards_each import cost_towards_each, perturb_towards_each


class MultiTargeted(PGD):
    """PGD on the logit of a wrong class less the label's, for each wrong class in turn.

    On a network that is linear over the ball this finds the worst case exactly, which the losses that move away from
    the label alone do not. Each image starts with the class that the model finds likeliest on the clean image; the
    paper leaves the order open. The paper shares a number of restarts out over the classes; here each class gets
    `restarts` of them. The paper's Adam is PGD's steepest ascent here. Under a targeted goal the goal's target is the
    only class.
    """

    name = "multi-targeted"
    paper = "Gowal et al.: An alternative surrogate loss for PGD-based adversarial testing, 2019"

    loss: LossName = "margin"
    """What the steps increase, towards each class; the paper's is the margin."""
    targets: PositiveInt | None = None
    """How many classes, the likeliest first; where left out, every one but the label."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`."""
        if goal.targets is not None:
            return super().perturb(victim, images, goal, threat, rng)
        return perturb_towards_each(self, victim, images, goal, threat, rng, self.targets)

    def cost(self, num_classes: int) -> Cost:
        """A ranking forward, and the runs towards each class with a forward between them."""
        return cost_towards_each(self, num_classes, self.targets)


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [MultiTargeted]
