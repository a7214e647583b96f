"""Rng: random draws that belong to an image, wherever it stands in whichever batch on whichever device."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as int64
_CHUNK = 200_000


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) in wrapping int64."""
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift(x, 31)


class Rng:
    """A stream of draws for each image of a batch, keyed by (seed, index of the image, stream, number of the draw).

    `rng[keep]` takes some of the images, by a mask or by an index that may repeat (repeated rows draw different
    values). It shares the count of draws with `rng`, so that nothing is ever drawn twice.
    """

    def __init__(self, seed: int, index: Tensor, shape: tuple[int, ...], stream: int = 0) -> None:
        """`index` int64 (N,): each image's position in its split. `shape`: (C, H, W), the shape of a draw."""
        seed = ((seed + 2**63) % 2**64) - 2**63
        start = torch.full_like(index, seed)
        self._keys = _mix(_mix(_mix(start + _GOLDEN) + index + 1) + stream)
        self.index = index
        self._shape = shape
        self.draws = torch.zeros_like(index)
        """How many each image has drawn, which `rng[keep]` shares."""
        self._rows = torch.arange(len(index), device=index.device)
        self._repeats = False  # whether rows may repeat; each repetition then draws values of its own

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, keep: Tensor) -> "Rng":
        part = self._like(self._keys[keep], self.index[keep])
        part.draws, part._rows = self.draws, self._rows[keep]
        part._repeats = self._repeats or keep.dtype != torch.bool
        return part

    def fold(self, stream: int) -> "Rng":
        """A new stream for every image, the same whatever has been drawn so far."""
        other = self._like(_mix(self._keys + _mix(torch.full_like(self._keys, stream + 1) * _GOLDEN)), self.index)
        other.draws, other._rows, other._repeats = torch.zeros_like(self.draws), self._rows, self._repeats
        return other

    def spawn(self) -> "Rng":
        """A new stream for every image, another one at each call."""
        return self._like(self._next(), self.index)

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] | None = None) -> Tensor:
        """float32 (N, *shape) in [low, high), from 24 bits each; rounding to float32 may reach `high` where it is not 1
        or `low` is not 0."""
        unit = _shift(self._bits(shape), 40).to(torch.float32) * 2.0**-24
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def normal(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """float32 (N, *shape), standard normal (Box and Muller's transform, in float64)."""
        radius = ((_shift(self._bits(shape), 11).double() + 1) * 2.0**-53).log_().mul_(-2).sqrt_()
        angle = _shift(self._bits(shape), 11).double().mul_(2 * math.pi * 2.0**-53)
        return (radius * angle.cos_()).float()

    def signs(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """float32 (N, *shape), -1 or 1."""
        return (_shift(self._bits(shape), 63) * 2 - 1).to(torch.float32)

    def integers(self, high: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """int64 (N, *shape) in [0, high)."""
        return _shift(self._bits(shape), 11) % high

    def _like(self, keys: Tensor, index: Tensor) -> Self:
        other = object.__new__(type(self))
        other._keys, other.index, other._shape = keys, index, self._shape
        other.draws = torch.zeros_like(keys)
        other._rows = torch.arange(len(keys), device=keys.device)
        other._repeats = False
        return other

    def _next(self) -> Tensor:
        """The key of each image's next draw, int64 (N,)."""
        draw = self.draws[self._rows]
        if self._repeats:
            draw = draw + _repetition(self._rows)
        self.draws.index_add_(0, self._rows, torch.ones_like(self._rows))
        return _mix(self._keys + (draw + 1) * _GOLDEN)

    def _bits(self, shape: tuple[int, ...] | None) -> Tensor:
        shape = self._shape if shape is None else shape
        keys, size = self._next(), math.prod(shape)
        places = torch.arange(1, size + 1, device=keys.device) * _GOLDEN
        rows = max(_CHUNK // max(size, 1), 1)  # small pieces stay in the cache
        parts = [_mix(part[:, None] + places) for part in keys.split(rows)]
        return torch.cat(parts).view(len(keys), *shape)


def _repetition(rows: Tensor) -> Tensor:
    """For each row, how many equal ones stand before it."""
    ordered, order = rows.sort(stable=True)
    place = torch.arange(len(rows), device=rows.device)
    first = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered.diff() != 0])[: len(rows)]
    start = torch.where(first, place, 0).cummax(0).values if len(rows) else place
    return torch.empty_like(rows).scatter_(0, order, place - start)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators of the CPU and of this device, and leave them as they were found."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield
