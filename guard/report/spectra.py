"""Spectra: how much of a perturbation's energy each frequency holds, as pictures and as a line from low to high."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from guard.report.curves import HEIGHT, WIDTH
from guard.spectrum import lowest

_LARGEST = 64  # frequencies of a side that a picture shows; neighbours share a pixel where there are more
_DECADES = 3  # from white to black
_RINGS = 32  # bands of frequency up to the highest of an axis; the diagonal reaches further


@dataclass(frozen=True)
class Spectrum:
    """Where the energy of the perturbations shown lies: the mean of those that are not zero."""

    pictures: int
    """How many those are."""
    area: str
    """Share of the energy by rising frequency, as the points of an SVG polygon."""
    noise: str
    """The same of white noise, as the path of an SVG line."""
    top: float
    """The share at the upper edge."""
    low: float
    """Share of the energy in the lowest frequencies of both axes."""
    noise_low: float
    """The same of white noise."""
    block: str
    """Which frequencies those are: '8 x 8 of 32 x 32'."""


def spectrum(shares: Tensor) -> Spectrum | None:
    """The spectrum of a gallery from what `energy` found of its perturbations; None where all are zero."""
    moved = shares[~shares.isnan().any(dim=(1, 2))]
    if not len(moved):
        return None
    mean, even = moved.mean(0), torch.full_like(moved[0], 1 / moved[0].numel())
    found, noise = radial(mean), radial(even)
    top = max(*found, *noise)
    height, width = mean.shape
    return Spectrum(
        pictures=len(moved),
        area=f"0,{HEIGHT} {_line(found, top)} {WIDTH},{HEIGHT}",
        noise=f"M{_line(noise, top)}",
        top=top,
        low=low(mean),
        noise_low=low(even),
        block=f"{_size(lowest(height), lowest(width))} of {_size(height, width)}",
    )


def low(share: Tensor) -> float:
    """What `low_frequency_energy` finds of a perturbation, from its shares (H, W); NaN where it is zero."""
    height, width = share.shape
    return float(share[: lowest(height), : lowest(width)].sum())


def radial(share: Tensor) -> list[float]:
    """Shares (H, W) added up over rings of equal frequency, from zero to the diagonal's.

    A ring is as wide as a frequency of an axis, and wider where an axis has more than 32: no ring is empty then.
    """
    rings = min(*share.shape, _RINGS)
    down, right = (torch.arange(side, dtype=torch.float64) / side for side in share.shape)
    ring = (rings * torch.hypot(down[:, None], right) + 0.5).long()
    return torch.bincount(ring.flatten(), share.double().flatten()).tolist()


def picture(share: Tensor) -> NDArray[np.float32]:
    """Shares (H, W) as an image (1, H, W) in [0, 1], the lowest frequency at the top left, at most 64 pixels a side.

    White is the strongest frequency, black a thousandth of it or less, on a logarithmic scale; a perturbation that is
    zero (NaN) is black.
    """
    stride = -(-max(share.shape) // _LARGEST)
    pooled = avg_pool2d(share.nan_to_num()[None], stride, ceil_mode=True)
    relative = (pooled / pooled.max()).nan_to_num()
    return (1 + relative.log10() / _DECADES).clamp(0, 1).float().numpy()


def _size(height: int, width: int) -> str:
    return f"{height}\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}{width}"


def _line(shares: list[float], top: float) -> str:
    step = WIDTH / max(len(shares) - 1, 1)
    return " ".join(f"{at * step:.1f},{(1 - share / top) * HEIGHT:.1f}" for at, share in enumerate(shares))
