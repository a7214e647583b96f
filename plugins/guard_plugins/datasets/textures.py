"""Textures: patterns of two levels, half of the area at each."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _wave(place: Tensor) -> Tensor:
    """Bands of soft edges, one pair for each unit."""
    return (0.5 + 1.5 * torch.sin(2 * math.pi * place)).clamp(0, 1)


def _checks(u: Tensor, v: Tensor, noise: Tensor) -> Tensor:
    return (0.5 + 2 * torch.sin(1.5 * math.pi * u) * torch.sin(1.5 * math.pi * v)).clamp(0, 1)


def _dots(u: Tensor, v: Tensor, noise: Tensor) -> Tensor:
    edge = 0.1
    radius = math.sqrt(0.5 / math.pi - edge**2 / 3)  # a soft edge adds to the area
    return (0.5 + (radius - torch.hypot(u - u.round(), v - v.round())) / (2 * edge)).clamp(0, 1)


def _zigzag(u: Tensor, v: Tensor, noise: Tensor) -> Tensor:
    return _wave(v + (u / 2 % 1 - 0.5).abs() * 2)


TEXTURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "horizontal stripes": lambda u, v, noise: _wave(v),
    "vertical stripes": lambda u, v, noise: _wave(u),
    "rising stripes": lambda u, v, noise: _wave((u + v) / math.sqrt(2)),
    "falling stripes": lambda u, v, noise: _wave((u - v) / math.sqrt(2)),
    "checks": _checks,
    "dots": _dots,
    "zigzag": _zigzag,
    "noise": lambda u, v, noise: (noise < 0.5).to(noise.dtype),
}
"""Of the place (u, v), across and down in periods, and noise uniform in [0, 1), the level in [0, 1]."""
