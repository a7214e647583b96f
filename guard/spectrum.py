"""Spectrum: the orthonormal two-dimensional DCT-II of images, as two matrix products on their own device."""

import math
from functools import cache

import torch
from torch import Tensor


def dct2(images: Tensor) -> Tensor:
    """Coefficients of images (..., H, W), in the same shape; the lowest frequency at the top left.

    Orthonormal: the sum of squares is that of the pixels. What `scipy.fft.dctn(..., norm="ortho")` computes.
    """
    height, width = (_cosines(side, images.dtype, images.device) for side in images.shape[-2:])
    return height @ images @ width.T


def idct2(coefficients: Tensor) -> Tensor:
    """Images of coefficients (..., H, W): the inverse of `dct2`."""
    height, width = (_cosines(side, coefficients.dtype, coefficients.device) for side in coefficients.shape[-2:])
    return height.T @ coefficients @ width


def energy(perturbations: Tensor) -> Tensor:
    """The share of each perturbation's energy that each frequency holds: (N, C, H, W) to (N, H, W), adding up to 1.

    Energy is the sum of squares over channels; NaN where a perturbation is zero.
    """
    found = dct2(perturbations).square().sum(1)
    return found / found.sum((1, 2), keepdim=True)


def low_frequency_energy(perturbations: Tensor) -> Tensor:
    """The share of each perturbation's energy in its `lowest` frequencies of both axes: (N, C, H, W) to (N,).

    That is the lowest 8 x 8 of 32 x 32; white noise has 1/16 there. NaN where a perturbation is zero.
    """
    sides = perturbations.shape[-2:]
    height, width = (_cosines(side, perturbations.dtype, perturbations.device)[: lowest(side)] for side in sides)
    low = height @ perturbations @ width.T  # all the others are not needed: the basis is orthonormal
    return low.square().sum((1, 2, 3)) / perturbations.square().sum((1, 2, 3))


def lowest(side: int) -> int:
    """How many frequencies of an axis of so many pixels count as low: a quarter, rounded up."""
    return -(-side // 4)


@cache
def _cosines(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The basis (side, side), a frequency in each row; computed in float64."""
    with torch.inference_mode(False):  # a tensor of that mode could not take part in a gradient later
        return _basis(side).to(device, dtype)


def _basis(side: int) -> Tensor:
    place = torch.arange(side, dtype=torch.float64)
    rows = torch.cos(math.pi * place[:, None] * (place + 0.5) / side) * math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return rows
