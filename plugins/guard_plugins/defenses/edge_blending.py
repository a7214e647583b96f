"""Edge blending: training images with their own outlines drawn over them."""

from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from guard import Defense, hookimpl
from guard_plugins.defenses.shape_bias import Share


class EdgeBlending(Defense):
    """Blends training images with their edges, white on black and the same in every channel.

    The paper trains on edges alone, of a Canny detector that was made robust, and finds them at inference too; here
    they are an augmentation, and the network sees images as they are afterwards. Edges are Sobel's: kornia's Canny
    waits for the device as often as it follows a line.
    """

    name = "edge-blending"
    paper = (
        "Sun, Li, Xiao, Qiu, Kailkhura, Liu, Li: Can shape structure features improve model robustness under diverse "
        "adversarial settings?, ICCV 2021"
    )

    strength: Share = 0.5
    """The edges' share is drawn for each image, uniformly from 0 to this."""

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] with their edges, and the targets as they are."""
        share = (self.strength * torch.rand(len(images), generator=generator)).to(images)[:, None, None, None]
        return images.lerp(edges(images), share), targets


def edges(images: Tensor) -> Tensor:
    """How steep images (N, C, H, W) are, of the channels the steepest: (N, 1, H, W) in [0, 1].

    The length of the Sobel gradient, where a step from black to white is 1; clamped to that. Borders are replicated.
    """
    from kornia.filters import spatial_gradient

    gradient = 2 * spatial_gradient(images)  # whose kernels give 0.5 at a step of 1
    return torch.linalg.vector_norm(gradient, dim=2).amax(1, keepdim=True).clamp(max=1)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [EdgeBlending]
