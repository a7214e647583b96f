"""Networks that answer what is wrong with an image, to be taken out of it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DnCnn(nn.Module):
    """Images (N, C, H, W) to the noise in them, of the same shape: `depth` convolutions of 3 x 3, all but the last with
    a ReLU, all but the first and the last with BatchNorm. It finds none before it learned."""

    def __init__(self, channels: int, depth: int, width: int) -> None:
        super().__init__()
        inner = (layer for _ in range(depth - 2) for layer in _convolution(width, width))
        first, last = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.layers = nn.Sequential(first, nn.ReLU(), *inner, _silent(last))

    def forward(self, images: Tensor) -> Tensor:
        """The noise (N, C, H, W)."""
        noise: Tensor = self.layers(_fast(images))
        return noise


class UNet(nn.Module):
    """Images (N, C, H, W), of any size, to what is to be added to them, of the same shape; nothing before it learned.

    The shape of DUNET (Liao et al. 2018), whose `width` is 64: five levels of `width` x 1, 2, 4, 4 and 4 channels, each
    half as large as the one before; then back up, beside what each level answered on the way down; then a convolution
    of 1 x 1. A level has two convolutions where it is as large as the image, else three. A larger size repeats values
    (nearest), for which every device has one gradient.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width, 4 * width]
        self.down, self.up, before = nn.ModuleList(), nn.ModuleList(), channels
        for level, after in enumerate(widths):
            self.down.append(_level(before, after, level, stride=1 if level == 0 else 2))
            before = after
        for level, after in reversed(list(enumerate(widths[:-1]))):
            self.up.append(_level(before + after, after, level))
            before = after
        self.last = _silent(nn.Conv2d(before, channels, 1))

    def forward(self, images: Tensor) -> Tensor:
        """What is to be added (N, C, H, W)."""
        values, beside = _fast(images), []
        for block in self.down:
            values = block(values)
            beside.append(values)
        for block, other in zip(self.up, reversed(beside[:-1]), strict=True):
            values = block(torch.cat([F.interpolate(values, other.shape[2:]), other], 1))
        change: Tensor = self.last(values)
        return change


def restored(images: Tensor, change: Tensor) -> Tensor:
    """The images with the change, in [0, 1]. The gradient does not stop where that is cut off, or an attack would find
    none at most of what is black or white."""
    whole = images + change
    return whole.clamp(0, 1).detach() + (whole - whole.detach())


def _level(before: int, after: int, level: int, stride: int = 1) -> nn.Sequential:
    count = 2 if level == 0 else 3
    inner = (layer for _ in range(count - 1) for layer in _convolution(after, after))
    return nn.Sequential(*_convolution(before, after, stride), *inner)


def _convolution(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


def _silent(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that answers 0 before it learned: what it would answer otherwise, training takes long to unlearn."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def _fast(images: Tensor) -> Tensor:
    """In the memory format in which few channels are up to 1.6 times as fast on a CPU."""
    return images.contiguous(memory_format=torch.channels_last)
