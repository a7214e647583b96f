"""FGSM-RS: adversarial training with one step from a random start."""

from collections.abc import Iterable

import torch
from pydantic import PositiveFloat
from torch import Generator, Tensor, nn

from guard import Defense, Rng, ThreatModel, hookimpl
from guard_plugins.defenses.crafting import BatchNormMode, Crafting


class FGSMRS(Crafting):
    """Trains on one step from a uniform draw of the ball (Fast AT).

    The draw may leave [0, 1], and the gradient is taken there; only what is trained on is projected, onto ball and
    range. So the paper and the authors' code for MNIST; that for CIFAR-10 clamps the draw, too, which on MNIST at 0.3
    was measured to end in catastrophic overfitting within an epoch: half of the draw is lost where most pixels are 0.
    For l2 the step goes along the gradient; for l1 it starts at the image. BatchNorm is in train mode while it is
    crafted, as in the authors' code. Long training, a large epsilon or a long step may still overfit.
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
        with self.facing(model, images, targets, generator) as (victim, goal, rng):
            start = images + _draw(threat, images, rng)
            gradient, _, _ = victim.gradient(start, goal)
        return threat.project(start + threat.steepest_ascent(gradient, self.step * threat.epsilon, start), images)


def _draw(threat: ThreatModel, images: Tensor, rng: Rng) -> Tensor:
    """Uniform in the ball around 0; 0 for l1, where such a draw is far from every corner."""
    if threat.norm == "l1":
        return torch.zeros_like(images)
    if threat.norm == "linf":
        return rng.uniform(-threat.epsilon, threat.epsilon).to(images.dtype)
    direction, size = rng.normal(), images[0].numel()
    radius = threat.epsilon * rng.uniform(shape=()) ** (1 / size)
    return (direction * (radius / direction.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)).to(images.dtype)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [FGSMRS]
