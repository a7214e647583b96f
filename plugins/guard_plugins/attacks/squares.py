"""The starts and the squares of the Square attack, for linf and l2.

Images and points are flat here, (N, C, H * W). `numbers` are uniform draws in [0, 1), a row for each image.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from guard import Rng

TINY = 1e-12


@dataclass(frozen=True)
class Squares(ABC):
    """Squares of one side in images of one size, and what is done to them."""

    side: int
    height: int
    width: int
    epsilon: float

    numbers: ClassVar[int]
    """How many numbers a change takes, beside one for each channel."""

    @staticmethod
    @abstractmethod
    def fitting(side: int) -> int:
        """The side that is taken where the schedule says `side`."""

    @staticmethod
    @abstractmethod
    def start(images: Tensor, epsilon: float, rng: Rng) -> Tensor:
        """The first points, (N, C, H, W) as the images here."""

    @abstractmethod
    def change(self, points: Tensor, images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Change the points in place; returns where, as indices (N, C, k) into H * W, and what stood there."""

    def places(self, numbers: Tensor, channels: int) -> Tensor:
        """A square anywhere in each image, from two numbers (N, 2); indices (N, C, side * side) into H * W."""
        top = (numbers[:, :1] * (self.height - self.side + 1)).long()
        left = (numbers[:, 1:] * (self.width - self.side + 1)).long()
        inside = _inside(self.side, self.width, numbers.device)
        return (top * self.width + left + inside)[:, None].expand(-1, channels, -1)


class LinfSquares(Squares):
    """Corners of the ball: each channel of a square at image + epsilon or image - epsilon."""

    numbers = 2

    @staticmethod
    def fitting(side: int) -> int:
        """Any side from 1."""
        return max(side, 1)

    @staticmethod
    def start(images: Tensor, epsilon: float, rng: Rng) -> Tensor:
        """Vertical stripes one pixel wide, each channel of each at + or - epsilon."""
        signs = rng.signs((images.shape[1], 1, images.shape[3])).to(images.dtype)
        return (images + epsilon * signs).clamp_(0, 1)

    def change(self, points: Tensor, images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Give each channel of a square the sign drawn, or the other one where that would change nothing at all."""
        at = self.places(numbers[:, :2], images.shape[1])
        before, window = points.gather(2, at), images.gather(2, at)
        step = self.epsilon * _signs(numbers[:, 2:, None]).to(images.dtype)
        same = ((window + step).clamp_(0, 1) == before).flatten(1).all(1)
        step = torch.where(same[:, None, None], -step, step)
        points.scatter_(2, at, (window + step).clamp_(0, 1))
        return at, before


class L2Squares(Squares):
    """Mass taken out of one square and moved into another, shaped as two opposite bumps."""

    numbers = 5

    @staticmethod
    def fitting(side: int) -> int:
        """The next odd side from 3."""
        return max(side + 1 - side % 2, 3)

    @staticmethod
    def start(images: Tensor, epsilon: float, rng: Rng) -> Tensor:
        """A grid of tiles, five along the shorter side, each with two bumps of a random sign for each channel."""
        count, channels, height, width = images.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        lies = rng.uniform(shape=(rows * columns, 1))
        bumps = _bumps(side, lies, images).view(count, rows, columns, 1, side, side)
        tiles = bumps * rng.signs((rows, columns, channels, 1, 1)).to(images.dtype)
        grid = tiles.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, rows * side, columns * side)
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        moved = torch.zeros_like(images)
        moved[:, :, top : top + rows * side, left : left + columns * side] = grid
        scale = epsilon / torch.linalg.vector_norm(moved.flatten(1), dim=1)
        return (images + moved * scale.view(-1, 1, 1, 1)).clamp_(0, 1)

    def change(self, points: Tensor, images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Empty one square; give another what both had in each channel, and a share of what the ball has left."""
        channels = images.shape[1]
        into, out = self.places(numbers[:, :2], channels), self.places(numbers[:, 2:4], channels)
        at = torch.cat([into, out], 2)
        before, window, emptied = points.gather(2, at), images.gather(2, into), images.gather(2, out)
        unused = self.epsilon**2 - (points - images).square().sum((1, 2))
        moved = points.gather(2, into) - window
        points.scatter_(2, into, window)
        mass = _mass(moved) + _mass(points.gather(2, out) - emptied) + unused.view(-1, 1, 1) / channels
        bumps = _bumps(self.side, numbers[:, 4:5], images) * _signs(numbers[:, 5:, None]).to(images.dtype)
        turned = bumps + moved / _mass(moved).sqrt().clamp(min=TINY)
        turned = torch.where(_mass(turned) < 1e-6, bumps, turned)  # they cancel where a change is taken back
        turned *= mass.clamp(min=0).sqrt() / _mass(turned).sqrt()
        points.scatter_(2, out, emptied).scatter_(2, into, (window + turned).clamp_(0, 1))
        return at, before


@cache
def _inside(side: int, width: int, device: torch.device) -> Tensor:
    """A square's pixels as seen from its first one: indices (side * side,) into H * W."""
    along = torch.arange(side, device=device)
    return (along[:, None] * width + along).flatten()


def _bumps(side: int, lies: Tensor, like: Tensor) -> Tensor:
    """A bump up and a bump down, one over the other or side by side as the numbers `lies` (N, k) say; of length 1,
    (N, k, side * side)."""
    over, beside = _both(side, like.dtype, like.device)
    return torch.where(lies[..., None] < 0.5, over, beside)


@cache
def _both(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    both = torch.cat([_bump(side // 2, side), -_bump(side - side // 2, side)])
    both = (both / torch.linalg.vector_norm(both)).to(device, dtype)
    return both.flatten(), both.T.flatten()


def _bump(height: int, width: int) -> Tensor:
    """1 / k^2 added to all within distance k - 1 (the larger of down and across) of the middle, for each k from 1; of
    length 1, float64 (height, width)."""
    reach = max(height, width) // 2
    sums = (1 / torch.arange(1, reach + 2, dtype=torch.float64).square()).flip(0).cumsum(0).flip(0)
    down, across = ((torch.arange(size) - size // 2).abs() for size in (height, width))
    bump = sums[torch.maximum(down[:, None], across)]
    return bump / torch.linalg.vector_norm(bump).clamp(min=TINY)


def _signs(numbers: Tensor) -> Tensor:
    return (numbers >= 0.5) * 2 - 1


def _mass(values: Tensor) -> Tensor:
    """The sum of squares in each channel, (N, C, 1)."""
    return values.square().sum(2, keepdim=True)


SQUARES: dict[str, type[Squares]] = {"linf": LinfSquares, "l2": L2Squares}
