"""Resizing and padding at random."""

from collections.abc import Iterable
from typing import Self

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor

from guard import Defense, Rng, hookimpl
from guard_plugins.defenses.denoising import averaged


class ResizePad(Defense):
    """Resizes each image to a random size and pads it with zeros, at a random place, to a fixed one.

    All whole sizes from `low` to `high` are equally likely, and so is each place. Sizes are shares of the image's
    sides, which keep their ratio. The paper pads 299 to 331 pixels, which not every network takes: by default the
    images shrink instead and end as large as they came. Its setting is low: 1, high: 1.107, padded: 1.107.

    Interpolation is bilinear, without antialiasing (the authors' code takes the nearest pixel), and differentiable.
    """

    name = "resize-pad"
    paper = "Xie, Wang, Zhang, Ren, Yuille: Mitigating adversarial effects through randomization, ICLR 2018"
    randomized = True

    low: PositiveFloat = 0.85
    """The smallest size, as a share of the image's sides."""
    high: PositiveFloat = 1.0
    """The largest size."""
    padded: PositiveFloat = 1.0
    """The size after padding."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high <= self.padded:
            raise ValueError(
                f"low {self.low}, high {self.high} and padded {self.padded} are not in this order; write them so that "
                f"low <= high <= padded"
            )
        return self

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The padded images (N, C, H', W'), where H' and W' are `padded` times H and W, rounded."""
        draws = rng.uniform(shape=(3,)).double()
        down, across = (
            self._resampling(side, draws[:, 0], draws[:, place]).to(images)[:, None]
            for side, place in zip(images.shape[2:], (1, 2), strict=True)
        )
        return averaged(down @ images @ across.mT)

    def _resampling(self, side: int, size: Tensor, place: Tensor) -> Tensor:
        """The weights (N, side', side) with which an axis' pixels make up the new ones; draws (N,) in [0, 1)."""
        low, high, full = (max(1, round(share * side)) for share in (self.low, self.high, self.padded))
        length = low + (size * (high - low + 1)).floor()
        start = (place * (full - length + 1)).floor()
        pixel = torch.arange(full, device=size.device) - start[:, None]
        source = ((pixel + 0.5) * side / length[:, None] - 0.5).clamp(0, side - 1)
        weights = (1 - (source[..., None] - torch.arange(side, device=size.device)).abs()).clamp(min=0)
        return weights * ((pixel >= 0) & (pixel < length[:, None]))[..., None]


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [ResizePad]
