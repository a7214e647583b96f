"""GradAlign: FGSM on a network whose gradient points the same way nearby."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PrivateAttr
from torch import Generator, Tensor, nn

from guard import Attack, Defense, ThreatModel, hookimpl
from guard_plugins.attacks.gradient_sign import FGSM
from guard_plugins.defenses.adversarial_training import AdversarialTraining
from guard_plugins.defenses.crafting import BatchNormMode, drawn


class GradAlign(AdversarialTraining):
    """Trains on FGSM's images, and adds weight (1 - cos(g(x), g(x + u))), g the gradient of the loss by the image.

    u is uniform in the ball (x + u is projected; the authors let it leave [0, 1]), the cosine is taken for each image,
    and images with a zero gradient are left out of its mean. The weights learn through both gradients, as the formula
    says (the authors' code holds g(x) fixed). All of it happens in train mode, as in the authors' code: the running
    statistics of BatchNorm follow x', x and x + u. It costs about three times as much as FGSM.
    """

    name = "gradalign"
    paper = "Andriushchenko, Flammarion: Understanding and improving fast adversarial training, NeurIPS 2020"

    attack: Attack = FGSM()
    """Crafts the adversarial images: any attack on gradients, logits or labels, by name or mapping."""
    batch_norm: BatchNormMode = "train"
    """What BatchNorm uses while the adversary is crafted: eval, its running statistics; train, the batch's."""
    weight: NonNegativeFloat = 0.2
    """Weight of the alignment (lambda in the paper), for 8/255 on CIFAR-10; it grows with epsilon."""

    _threat: ThreatModel = PrivateAttr()  # of the batch whose adversary was crafted last: `loss` is not told

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """Adversarial images (N, C, H, W). Raises InputError where attack or epsilon do not fit the threat's norm."""
        self._threat = self.own(threat, finite=True)
        return super().adversary(model, images, targets, threat, generator)

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        """Cross-entropy on the adversarial images, and the weighted misalignment."""
        entropy = F.cross_entropy(model(adversarial), targets)
        noisy = self._threat.random_start(images, drawn(images, generator))
        here, there = (self._gradient(model, points, targets) for points in (images, noisy))
        known = here.any(1) & there.any(1)
        cosine = F.cosine_similarity(here[known], there[known])
        return entropy + self.weight * (1 - cosine).sum() / known.sum().clamp(min=1)

    def _gradient(self, model: nn.Module, points: Tensor, targets: Tensor) -> Tensor:
        """Of each image's cross-entropy (N, D), with its graph, scaled so that no square vanishes."""
        leaf = points.detach().requires_grad_()
        entropy = F.cross_entropy(model(leaf), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(entropy, leaf, create_graph=True)
        gradient = gradient.flatten(1)
        return gradient / gradient.detach().abs().amax(1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [GradAlign]
