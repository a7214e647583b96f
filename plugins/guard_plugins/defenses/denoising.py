"""Denoising: filters in front of the network."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat
from torch import Tensor

from guard import Defense, InputError, Rng, hookimpl


def _odd(size: int) -> int:
    if size < 3 or size % 2 == 0:
        raise ValueError(f"{size} is no odd number of at least 3; write 3 or 5")
    return size


Side = Annotated[int, AfterValidator(_odd)]
"""Side of a square window in pixels."""


class GaussianBlur(Defense):
    """A Gaussian filter, its window cut at `kernel_size` pixels and the image reflected at its border (no pixel twice).

    Differentiable, so that an adaptive attack goes straight through it.
    """

    name = "gaussian-blur"

    sigma: PositiveFloat = 1.0
    """Standard deviation in pixels."""
    kernel_size: Side = 5
    """Side of the window in pixels, odd."""

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The blurred images. Raises InputError for images that are smaller than half the window."""
        from kornia.filters import gaussian_blur2d

        check_fits(self, "kernel_size", images)
        return averaged(gaussian_blur2d(images, self.kernel_size, (self.sigma, self.sigma), border_type="reflect"))


class Median(Defense):
    """A median filter, the image reflected at its border (no pixel twice).

    Differentiable: the gradient goes to the pixel that the median took.
    """

    name = "median"
    paper = "Xu, Evans, Qi: Feature squeezing: detecting adversarial examples in deep neural networks, NDSS 2018"

    kernel_size: Side = 3
    """Side of the window in pixels, odd."""

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The filtered images. Raises InputError for images that are smaller than half the window."""
        from kornia.filters import median_blur

        check_fits(self, "kernel_size", images)
        filtered: Tensor = median_blur(images, self.kernel_size, border_type="reflect")
        return filtered


class BitDepth(Defense):
    """Rounds each value to the nearest of 2^bits levels from 0 to 1: round(x (2^bits - 1)) / (2^bits - 1).

    Not differentiable; an attack's backward takes the identity for it.
    """

    name = "bit-depth"
    paper = "Xu, Evans, Qi: Feature squeezing: detecting adversarial examples in deep neural networks, NDSS 2018"
    differentiable = False

    bits: Annotated[int, Field(ge=1, le=8)] = 3
    """Bits that are left of each value."""

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The rounded images."""
        top = 2**self.bits - 1
        return (images * top).round() / top


def averaged(images: Tensor) -> Tensor:
    """Weighted means of values in [0, 1], in [0, 1]: weights that sum to 1 + 1e-7 leave the range by as much, which is
    taken back without stopping the gradient there."""
    return images.clamp(0, 1).detach() + (images - images.detach())


def check_fits(defense: Defense, parameter: str, images: Tensor, margin: int = 0) -> None:
    """Raise InputError where images (N, C, H, W) do not reach, reflected, around a window of so many pixels and a
    margin."""
    side, (height, width) = getattr(defense, parameter), images.shape[2:]
    most = 2 * (min(height, width) - margin) - 1
    if side > most:
        raise InputError(
            f"defense '{defense.name}' has a {parameter} of {side}; images are {height} x {width}. "
            f"Give it one of at most {most}"
        )


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [GaussianBlur, Median, BitDepth]
