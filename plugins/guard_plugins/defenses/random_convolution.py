"""Random convolution: training images mixed with what a random kernel makes of their texture."""

from collections.abc import Iterable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Generator, Tensor

from guard import Defense, hookimpl


def _odd(size: int) -> int:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"{size} is no size of a kernel with a centre; write an odd one such as {max(size, 0) + 1}")
    return size


class RandomConvolution(Defense):
    """Mixes training images with their convolution with a random kernel, which leaves shapes larger than it.

    alpha * image + (1 - alpha) * convolution, alpha uniform in [0, 1). Kernel weights are normal with the variance
    1 / (size^2 * channels), Kaiming's for a linear layer, and mix the channels. Size, kernel and alpha are drawn for
    each image; the paper draws them once for a batch, which is no cheaper (128 images 3x32x32, a kernel of 7: 25 ms for
    one each as a grouped convolution, 19 ms for one).

    The paper convolves normalized images, padded with zeros. Here they are convolved around mid-grey (0.5), which is
    also what they are padded with; the convolution and the mixture are clamped to [0, 1], which the paper's code can
    do. Its loss that compares the answers to several mixtures is left out.
    """

    name = "random-convolution"
    paper = (
        "Xu, Liu, Yang, Raffel, Niethammer: Robust and generalizable visual representation learning via random "
        "convolutions, ICLR 2021"
    )

    sizes: Annotated[tuple[Annotated[int, AfterValidator(_odd)], ...], Field(min_length=1)] = (1, 3, 5, 7)
    """The sizes of kernels to choose from, in pixels."""

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] mixed with their convolution, and the targets as they are."""
        count, channels = images.shape[:2]
        kernels = self._kernels(count, channels, generator).to(images)
        alpha = torch.rand(count, generator=generator).to(images)[:, None, None, None]
        convolution = convolved(images, kernels).clamp(0, 1)
        return convolution.lerp(images, alpha), targets

    def _kernels(self, count: int, channels: int, generator: Generator) -> Tensor:
        """(count, channels, channels, K, K), K the largest size; zero around a smaller kernel."""
        sizes = torch.tensor(self.sizes)[torch.randint(len(self.sizes), (count,), generator=generator)]
        sizes = sizes.view(-1, 1, 1, 1, 1)
        side = max(self.sizes)
        weights = torch.randn(count, channels, channels, side, side, generator=generator)
        away = (torch.arange(side) - side // 2).abs()
        inside = torch.maximum(away[:, None], away) <= sizes // 2
        return weights * inside / (sizes * channels**0.5)


def convolved(images: Tensor, kernels: Tensor) -> Tensor:
    """Each of the images (N, C, H, W) convolved around mid-grey with its own kernel (N, C, C, K, K)."""
    count, channels, height, width = images.shape
    side = kernels.shape[-1]
    each = (images - 0.5).reshape(1, count * channels, height, width)
    result = F.conv2d(each, kernels.view(-1, channels, side, side), padding=side // 2, groups=count)
    return result.view(images.shape) + 0.5


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [RandomConvolution]
