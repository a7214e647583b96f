"""Gaussian data augmentation."""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Generator, Tensor

from guard import Defense, hookimpl
from guard_plugins.defenses.crafting import drawn


class GaussianAugmentation(Defense):
    """Adds normal noise to training images, and clamps them to [0, 1].

    The paper adds noisy copies to the training set. Here each image is noisy with a probability each time it is met,
    so that an epoch stays as long; half of them, unless `share` says otherwise.
    """

    name = "gaussian-augmentation"
    paper = "Zantedeschi, Nicolae, Rawat: Efficient defenses against adversarial attacks, AISec 2017"

    sigma: PositiveFloat = 0.3
    """Standard deviation of the noise, in units of the [0, 1] range; 0.3 is for MNIST, 0.05 for CIFAR-10."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Probability that an image is noisy."""

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """The images, some of them noisy, and the targets as they are."""
        rng = drawn(images, generator)
        noisy = rng.uniform(shape=()).view(-1, 1, 1, 1) < self.share
        noise = self.sigma * rng.normal().to(images.dtype)
        return torch.where(noisy, (images + noise).clamp(0, 1), images), targets


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [GaussianAugmentation]
