"""The networks of AdvGAN: what makes perturbations, and what tells whether an image is one with a perturbation."""

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Images (N, C, H, W) to values in (-1, 1) of the same shape: an encoder, four residual blocks, a decoder.

    The paper's c3s1-8, d16, d32, 4 x r32, u16, u8, c3s1-C. Sides that are no multiples of 4 are cropped at the end; the
    last convolution has no normalisation, which would take the size of a perturbation away, and a tanh.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_down(channels, 8, stride=1),
            *_down(8, 16, stride=2),
            *_down(16, 32, stride=2),
            *(_Residual(32) for _ in range(4)),
            *_up(32, 16),
            *_up(16, 8),
            nn.Conv2d(8, channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Values (N, C, H, W)."""
        values: Tensor = self.layers(images)[:, :, : images.shape[2], : images.shape[3]]
        return values


class Discriminator(nn.Module):
    """Images (N, C, H, W) to a value (N,): near 1 for images as they are, near 0 for adversarial ones.

    The paper's C8, C16, C32 (4 x 4, stride 2) and a linear layer; the first has no normalisation.
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        before, height, width = image_shape
        layers: list[nn.Module] = []
        for channels in (8, 16, 32):
            height, width = max(height // 2, 1), max(width // 2, 1)
            layers.append(nn.Conv2d(before, channels, 4, stride=2, padding=1 if min(height, width) > 1 else 2))
            if channels > 8:
                layers.append(_Norm(channels, affine=True))
            layers.append(nn.LeakyReLU(0.2))
            before = channels
        self.layers = nn.Sequential(*layers)
        with torch.no_grad():
            size = self.layers(torch.zeros(1, *image_shape)).numel()
        self.last = nn.Linear(size, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Values (N,)."""
        values: Tensor = self.last(self.layers(images).flatten(1))
        return values.squeeze(1)


class _Norm(nn.InstanceNorm2d):
    """InstanceNorm, but where one value of a channel is left, which it would make 0."""

    def forward(self, values: Tensor) -> Tensor:
        normed: Tensor = super().forward(values) if values[0, 0].numel() > 1 else values
        return normed


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_down(channels, channels, stride=1), *_down(channels, channels, stride=1)[:-1])

    def forward(self, values: Tensor) -> Tensor:
        changed: Tensor = self.layers(values)
        return values + changed


def _down(before: int, channels: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, channels, 3, stride, padding=1), _Norm(channels, affine=True), nn.ReLU()]


def _up(before: int, channels: int) -> list[nn.Module]:
    layer = nn.ConvTranspose2d(before, channels, 3, stride=2, padding=1, output_padding=1)
    return [layer, _Norm(channels, affine=True), nn.ReLU()]
