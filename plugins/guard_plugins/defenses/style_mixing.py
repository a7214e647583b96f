"""Style mixing: training images with the colours and the contrasts of others, frequency band by frequency band."""

from collections.abc import Iterable

import torch
from pydantic import PositiveInt
from torch import Generator, Tensor

from guard import Defense, dct2, hookimpl, idct2
from guard_plugins.defenses.shape_bias import Share

_FLAT = 1e-3  # about the deviation that rounding to 8 bits leaves


class StyleMixing(Defense):
    """Gives training images the texture of others of their batch, and a share of the labels of those.

    Each frequency band of a channel gets the deviation that it has in the partner, and the channel its mean: AdaIN on
    octaves of the DCT, where the paper has it on features of a VGG. The octaves are orthogonal, so that the pixels'
    deviation becomes the partner's too. Partners are a permutation of the batch.

    Labels become gamma * shape label + (1 - gamma) * texture label. The paper trains on each image twice, as it is and
    mixed, each with BatchNorms of its own; here an image is either, with the same ones.
    """

    name = "style-mixing"
    paper = "Li, Yu, Tan, Mei, Tang, Shen, Yuille, Xie: Shape-texture debiased neural network training, ICLR 2021"

    share: Share = 0.5
    """Probability that an image is mixed."""
    strength: Share = 0.5
    """How much of a mixed image has the partner's style, from 0 to 1; the rest is the image as it was."""
    label_share: Share = 0.8
    """gamma: how much of a mixed image's label remains its own; 1 leaves labels as they are."""
    bands: PositiveInt = 4
    """Octaves, from the highest frequencies down; the last one is all that remains. 1: the pixels' mean and deviation
    only."""

    @property
    def mixes_labels(self) -> bool:  # type: ignore[override]
        """Unless they keep all of their own."""
        return self.label_share < 1

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images in [0, 1], some of them in another one's style, and their mixed probabilities (N, K)."""
        partner = torch.randperm(len(images), generator=generator).to(images.device)
        mixed = torch.rand(len(images), generator=generator).to(images.device) < self.share
        strength = (self.strength * mixed).to(images.dtype)[:, None, None, None]
        images = images.lerp(restyled(images, partner, self.bands), strength).clamp(0, 1)
        if self.mixes_labels:
            targets = targets.lerp(targets[partner], ((1 - self.label_share) * mixed).to(targets.dtype)[:, None])
        return images, targets


def restyled(images: Tensor, partner: Tensor, bands: int) -> Tensor:
    """Images (N, C, H, W) with the mean of each channel, and the deviation of each band, of images[partner]; not
    clamped. A band that is flat stays so."""
    masks = _masks(images, bands)
    own = dct2(images).flatten(2)
    floor = _FLAT * own.shape[2] ** 0.5  # the DCT is orthonormal: deviations are sqrt(H * W) times as large there
    deviation = (own.square() @ masks.T).sqrt()  # (N, C, bands)
    styled = own * ((deviation[partner] / deviation.clamp(min=floor)) @ masks)
    styled[..., 0] = own[partner, :, 0]
    return idct2(styled.view_as(images))


def _masks(images: Tensor, bands: int) -> Tensor:
    """1 where a coefficient belongs to a band, else 0: (bands, H * W), the highest octave first, the mean in none."""
    down, across = (torch.arange(side, device=images.device) / side for side in images.shape[-2:])  # 1: Nyquist's
    frequency = torch.maximum(down[:, None], across).flatten()
    highest = 0.5 ** torch.arange(bands, device=images.device)[:, None]
    lowest = torch.where(highest > 0.5 ** (bands - 1), highest / 2, 0)
    return ((frequency > 0) & (lowest <= frequency) & (frequency < highest)).to(images.dtype)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [StyleMixing]
