"""Shuffles: does a network need the layout of an image, or its texture?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guard.errors import InputError
from guard.layers import held
from guard.precision import full_precision
from guard.rng import Rng, seeded
from guard.statistics import mcnemar, wilson

_BATCH = 128

Interval = tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """The shares of images that a network gives the same class after shuffling as before; intervals are Wilson's, 95 %.

    Which of the two is larger depends on the side: a conclusion must name it.
    """

    side: int
    """Of the blocks, in pixels."""
    blocks: float
    """Whole blocks shuffled: texture kept, layout destroyed."""
    blocks_interval: Interval
    pixels: float
    """Pixels shuffled inside each block: layout kept, texture destroyed."""
    pixels_interval: Interval
    p_value: float
    """That the two shares differ by chance: the exact McNemar test of the same images, two-sided."""


def blocks(images: Tensor, side: int, rng: Rng) -> Tensor:
    """Images (N, C, H, W) whose blocks of side x side pixels change places, each as it is.

    Raises InputError where the side does not divide both of the image's.
    """
    pieces = _cut(images, side)
    order = rng.uniform(shape=(pieces.shape[1],)).argsort(dim=1, stable=True)
    return _joined(pieces.gather(1, order[:, :, None, None].expand_as(pieces)), images)


def pixels(images: Tensor, side: int, rng: Rng) -> Tensor:
    """Images (N, C, H, W) whose pixels change places inside each block of side x side, in an order of its own.

    A pixel keeps its color. Raises InputError where the side does not divide both of the image's.
    """
    pieces = _cut(images, side)
    order = rng.uniform(shape=(pieces.shape[1], pieces.shape[3])).argsort(dim=2, stable=True)
    return _joined(pieces.gather(3, order[:, :, None].expand_as(pieces)), images)


def agreement(model: nn.Module, images: Tensor, sides: Sequence[int], seed: int = 0) -> list[Agreement]:
    """Both shuffles for each side, on images float (N, C, H, W) in [0, 1], of which there must be one at least.

    What happens to an image follows from `seed`, its position and the side alone, whatever else is asked. Raises
    InputError where a side does not divide both of the images'.
    """
    if len(images) == 0:
        raise InputError("agreement is a share of images, and there are none. Give at least one")
    rng = Rng(seed, torch.arange(len(images), device=images.device), tuple(images.shape[1:]))
    before = _predicted(model, images)
    rows = []
    for side in sides:
        draws = rng.fold(side)
        moved, mixed = (_predicted(model, shuffle(images, side, draws)) == before for shuffle in (blocks, pixels))
        by_blocks, by_pixels = int(moved.sum()), int(mixed.sum())
        rows.append(
            Agreement(
                side=side,
                blocks=by_blocks / len(images),
                blocks_interval=wilson(by_blocks, len(images)),
                pixels=by_pixels / len(images),
                pixels_interval=wilson(by_pixels, len(images)),
                p_value=mcnemar(int((moved & ~mixed).sum()), int((mixed & ~moved).sum())),
            )
        )
    return rows


def _cut(images: Tensor, side: int) -> Tensor:
    """The blocks of images (N, C, H, W), a row after the other: (N, blocks, C, pixels)."""
    height, width = images.shape[2:]
    common = math.gcd(height, width)
    if side < 1 or common % side:
        fitting = ", ".join(str(number) for number in range(1, common + 1) if common % number == 0)
        raise InputError(f"blocks of side {side} do not tile images of {height} x {width}. Give a side of {fitting}")
    tiles = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (N, C, rows, side, columns, side)
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)


def _joined(pieces: Tensor, images: Tensor) -> Tensor:
    """What `_cut` cut, in the shape of the images."""
    side = math.isqrt(pieces.shape[3])
    columns = images.shape[3] // side
    tiles = pieces.unflatten(3, (side, side)).unflatten(1, (-1, columns))
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def _predicted(model: nn.Module, images: Tensor) -> Tensor:
    """The class of each image, int64 (N,)."""
    device = images.device
    with held(model), torch.no_grad(), full_precision(device), seeded(0, device):  # a model may draw
        return torch.cat([model(part).argmax(1) for part in images.split(_BATCH)])
