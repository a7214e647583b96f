"""N-FGSM: one step from beyond the ball."""

import math
from collections.abc import Iterable

from pydantic import PositiveFloat
from torch import Generator, Tensor, nn

from guard import Defense, InputError, ThreatModel, hookimpl
from guard_plugins.defenses.crafting import BatchNormMode, Crafting


class NFGSM(Crafting):
    """Trains on one signed step from uniform noise of twice the radius, and takes neither back into the ball.

    x' = x + n + epsilon sign(gradient at x + n), both points clamped to [0, 1] only, as in the authors' code. For l2
    and l1 the noise is uniform in the ball of that radius, and the step goes along the steepest direction. BatchNorm is
    in train mode while it is crafted, as in the authors' code. Where epsilon is a large part of the range the noise
    saturates the images: on MNIST at 0.3 the defaults were measured to leave no robustness.
    """

    name = "n-fgsm"
    paper = (
        "de Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania: Make some noise: reliable and efficient single-step "
        "adversarial training, NeurIPS 2022"
    )

    batch_norm: BatchNormMode = "train"
    """What BatchNorm uses while the adversary is crafted: eval, its running statistics; train, the batch's."""
    noise: PositiveFloat = 2.0
    """Radius of the noise, in units of epsilon (k in the paper)."""
    step: PositiveFloat = 1.0
    """Length of the step, in units of epsilon."""

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """Images (N, C, H, W) in [0, 1] that may lie outside the ball. Raises InputError where epsilon does not fit."""
        threat = self.own(threat, finite=True)
        size = self.noise * threat.epsilon
        if threat.norm == "linf" and size > 1:
            raise InputError(
                f"the noise of defense '{self.name}' reaches {size:g}, more than the whole pixel range. "
                f"Give it a noise of at most {math.floor(100 / threat.epsilon) / 100:g}"
            )
        around = ThreatModel(norm=threat.norm, epsilon=size)
        with self.facing(model, images, targets, generator) as (victim, goal, rng):
            noisy = around.random_start(images, rng)
            gradient, _, _ = victim.gradient(noisy, goal)
        return (noisy + threat.steepest_ascent(gradient, self.step * threat.epsilon, noisy)).clamp(0, 1)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [NFGSM]
