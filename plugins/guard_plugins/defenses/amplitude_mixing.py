"""Amplitude mixing: training images with some of another one's Fourier amplitudes, and their own phases."""

from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from guard import Defense, hookimpl
from guard_plugins.defenses.shape_bias import Share


class AmplitudeMixing(Defense):
    """Mixes the Fourier amplitudes of training images with those of others of their batch, channel by channel.

    Phases, which hold the shapes, stay, and so do the labels. Partners are a permutation of the batch; the paper draws
    them from all training images, of other domains. Its two losses that compare the two images' answers are left out.
    What leaves [0, 1] is clamped.
    """

    name = "amplitude-mixing"
    paper = "Xu, Zhang, Zhang, Wang, Tian: A Fourier-based framework for domain generalization, CVPR 2021"

    strength: Share = 1.0
    """The partner's share of the amplitudes is drawn for each image, uniformly from 0 to this."""

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] with mixed amplitudes, and the targets as they are."""
        partner = torch.randperm(len(images), generator=generator).to(images.device)
        share = (self.strength * torch.rand(len(images), generator=generator)).to(images)[:, None, None, None]
        spectrum = torch.fft.rfft2(images)
        amplitude = spectrum.abs()
        mixed = torch.polar(amplitude.lerp(amplitude[partner], share), spectrum.angle())
        return torch.fft.irfft2(mixed, s=images.shape[-2:]).clamp(0, 1), targets


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [AmplitudeMixing]
