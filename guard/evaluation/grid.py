"""Grid: adversarial images as an 8-bit file would hold them."""

import torch
from torch import Tensor

from guard.threat import ThreatModel


def to_8bit(adversarial: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """Each value rounded to the nearest multiple of 1/255 inside the ball and the range.

    For linf that is exact. For l2 and l1 an image whose rounding leaves the ball is rounded towards the clean image,
    which lies on the grid, so that it cannot leave.
    """
    grid = (adversarial.double() * 255).round()
    if threat.norm == "linf":
        clean, reach = images.double() * 255, threat.epsilon * 255
        grid = grid.maximum((clean - reach - 1e-4).ceil()).minimum((clean + reach + 1e-4).floor())
        return (grid.clamp(0, 255) / 255).to(images.dtype)
    rounded = (grid / 255).to(images.dtype)
    inwards = torch.where(adversarial > images, (adversarial * 255).floor(), (adversarial * 255).ceil()) / 255
    inwards = torch.where(adversarial > images, inwards.maximum(images), inwards.minimum(images)).to(images.dtype)
    inside = threat.contains(rounded, images).view(-1, 1, 1, 1)
    return torch.where(inside, rounded, inwards)
