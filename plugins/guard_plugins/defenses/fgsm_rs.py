"""FGSM-RS: adversarial training with one step from a random start."""

from collections.abc import Iterable

from pydantic import PositiveFloat
from torch import Generator, Tensor, nn

from guard import Defense, ThreatModel, hookimpl
from guard_plugins.attacks.pgd import PGD
from guard_plugins.defenses.crafting import BatchNormMode, Crafting


class FGSMRS(Crafting):
    """Trains on one signed step from a uniform draw of the ball, projected (Fast AT).

    It is `pgd` with one step: for l2 the draw is uniform in the ball and the step goes along the gradient; for l1 it
    starts at the image. BatchNorm is in train mode while it is crafted, as in the authors' code. Long training, a large
    epsilon or a long step may end in catastrophic overfitting: robust to FGSM, and to nothing else.
    """

    name = "fgsm-rs"
    paper = "Wong, Rice, Kolter: Fast is better than free: revisiting adversarial training, ICLR 2020"

    batch_norm: BatchNormMode = "train"
    """What BatchNorm uses while the adversary is crafted: eval, its running statistics; train, the batch's."""
    step: PositiveFloat = 1.25
    """Length of the step, in units of epsilon."""

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """Adversarial images (N, C, H, W). Raises InputError where epsilon does not fit the threat's norm."""
        threat = self.own(threat, finite=True)
        attack = PGD(steps=1, step_size=self.step * threat.epsilon)
        return self.crafted(attack, model, images, targets, threat, generator)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [FGSMRS]
