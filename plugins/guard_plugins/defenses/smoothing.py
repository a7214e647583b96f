"""Smoothing that keeps edges: means of the pixels that look alike."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from guard import Defense, Rng, hookimpl
from guard_plugins.defenses.denoising import Side, averaged, check_fits


class Bilateral(Defense):
    """A mean over a window, in which a pixel counts by its distance and by its likeness in color, each a Gaussian.

    Colors are compared by their Euclidean distance in RGB (the paper does so in CIE-Lab); the image is reflected at
    its border (no pixel twice). Differentiable, so that an adaptive attack goes straight through it.
    """

    name = "bilateral"
    paper = "Tomasi, Manduchi: Bilateral filtering for gray and color images, ICCV 1998"

    sigma_color: PositiveFloat = 0.1
    """Standard deviation of the distance between colors, in units of the [0, 1] range."""
    sigma_space: PositiveFloat = 1.5
    """Standard deviation of the distance between pixels, in pixels."""
    kernel_size: Side = 5
    """Side of the window in pixels, odd."""

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The smoothed images. Raises InputError for images that are smaller than half the window."""
        from kornia.filters import bilateral_blur

        check_fits(self, "kernel_size", images)
        space = (self.sigma_space, self.sigma_space)
        return averaged(bilateral_blur(images, self.kernel_size, self.sigma_color, space, color_distance_type="l2"))


class NonLocalMeans(Defense):
    """A mean over a search window, in which a pixel counts by how alike the patches around it and the center are.

    The weight is exp(-d / h^2), with d the mean squared difference of the two patches over pixels and channels. The
    paper leaves open how a patch's pixels count and what the center does: here they count the same, and the center has
    the weight 1 that it has by the formula. The image is reflected at its border (no pixel twice).

    Differentiable, so that an adaptive attack goes straight through it. A backward computes the weights anew, a row of
    the search window at a time, so that they need not be kept.
    """

    name = "nl-means"
    paper = "Buades, Coll, Morel: A non-local algorithm for image denoising, CVPR 2005"

    strength: PositiveFloat = 0.1
    """h, the root mean squared difference between patches at which a weight is 1/e, in units of the [0, 1] range."""
    patch_size: Side = 3
    """Side of the patches in pixels, odd."""
    search_size: Side = 11
    """Side of the search window in pixels, odd."""

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The smoothed images. Raises InputError for images that are smaller than half of both windows together."""
        edge, reach = self.patch_size // 2, self.search_size // 2
        check_fits(self, "search_size", images, margin=edge)
        padded = F.pad(images, (edge + reach,) * 4, mode="reflect")
        total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
        for row in range(self.search_size):
            sums = checkpoint(self._row, padded, row, use_reentrant=False, preserve_rng_state=False)
            total, weights = total + sums[0], weights + sums[1]
        return averaged(total / weights)

    def _row(self, padded: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """What a row of the search window adds to the sum (N, C, H, W) and to its weights (N, 1, H, W)."""
        edge, reach = self.patch_size // 2, self.search_size // 2
        height, width = (side - 2 * reach for side in padded.shape[2:])
        patches = padded[..., reach : reach + height, reach : reach + width]
        total = weights = padded.new_zeros(())
        for column in range(self.search_size):
            others = padded[..., row : row + height, column : column + width]
            distance = F.avg_pool2d((patches - others).square().mean(1, keepdim=True), self.patch_size, 1)
            weight = torch.exp(-distance / self.strength**2)
            total = total + weight * others[..., edge : height - edge, edge : width - edge]
            weights = weights + weight
        return total, weights


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [Bilateral, NonLocalMeans]
