"""Shape bias: training images whose texture and colour say less."""

import math
from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Generator, Tensor

from guard import Defense, Rng, hookimpl

Share = Annotated[float, Field(ge=0, le=1)]
"""A probability, or a strength from 0 to 1."""

_BLUR_WINDOW = 5


class ShapeBias(Defense):
    """Augments training images so that the network has to rely on shape: grey, jittered, blurred and noisy ones.

    Each image has its own draws; they come from the generator handed in, never from torch's global one. Images that are
    not in three channels keep their colours and get brightness and contrast only. Works on the images' device.
    """

    name = "shape-bias"
    paper = (
        "Hermann, Chen, Kornblith: The origins and prevalence of texture bias in convolutional neural networks, "
        "NeurIPS 2020"
    )

    grayscale: Share = 0.2
    """Probability that an image loses its colours."""
    jitter: Share = 0.8
    """Probability that brightness, contrast, saturation and hue change."""
    jitter_strength: Share = 0.2
    """The first three are multiplied by a number in [1 - strength, 1 + strength]; the hue turns by at most a quarter of
    it (1 would be the whole circle)."""
    blur: Share = 0.25
    """Probability of a Gaussian blur, in a window of 5 pixels."""
    blur_sigma: PositiveFloat = 1.0
    """Largest standard deviation of the blur, in pixels; the smallest is a tenth of it."""
    noise: Share = 0.5
    """Probability of Gaussian noise."""
    noise_std: Annotated[float, Field(ge=0)] = 0.05
    """Standard deviation of the noise, in units of the [0, 1] range."""

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Augmented images in [0, 1], and the targets as they are."""
        from kornia.color import rgb_to_grayscale
        from kornia.filters import gaussian_blur2d

        seed = int(torch.randint(2**62, (), generator=generator))
        # what each image meets is drawn on the CPU, where kornia checks it without waiting for the device
        chosen, factors = torch.rand(9, len(images), generator=generator).split([4, 5])
        grey, jittered, blurred, noisy = chosen.to(images.device)[..., None, None, None]
        if images.shape[1] == 3:
            images = torch.where(grey < self.grayscale, rgb_to_grayscale(images).expand_as(images), images)
        images = torch.where(jittered < self.jitter, self._jittered(images, factors[:4]), images)
        sigma = self.blur_sigma * (0.1 + 0.9 * factors[4:].T.expand(-1, 2))
        images = torch.where(blurred < self.blur, gaussian_blur2d(images, _BLUR_WINDOW, sigma), images)
        rng = Rng(seed, torch.arange(len(images), device=images.device), tuple(images.shape[1:]))
        noise = self.noise_std * rng.normal().to(images.dtype)
        return torch.where(noisy < self.noise, images + noise, images).clamp(0, 1), targets

    def _jittered(self, images: Tensor, factors: Tensor) -> Tensor:
        from kornia.enhance import (
            adjust_brightness_accumulative,
            adjust_contrast_with_mean_subtraction,
            adjust_hue,
            adjust_saturation,
        )

        brightness, contrast, saturation, hue = self.jitter_strength * (2 * factors - 1)
        images = adjust_brightness_accumulative(images, 1 + brightness)
        images = adjust_contrast_with_mean_subtraction(images, 1 + contrast)
        if images.shape[1] == 3:
            images = adjust_hue(adjust_saturation(images, 1 + saturation), hue / 4 * 2 * math.pi)
        return images


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [ShapeBias]
