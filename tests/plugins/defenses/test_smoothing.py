"""Bilateral and non-local means against their formulas, written out pixel by pixel."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from guard import Defense, InputError, Rng

Make = Callable[..., Defense]


def scene(channels: int) -> np.ndarray:
    """Images (2, C, 7, 6)."""
    return np.random.default_rng(channels).uniform(size=(2, channels, 7, 6))


@pytest.mark.parametrize("channels", [1, 3])
def test_bilateral_is_its_formula(make: Make, make_rng: Callable[..., Rng], channels: int) -> None:
    images = scene(channels)
    reach, color, space = 2, 0.3, 1.2
    wide = np.pad(images, [(0, 0), (0, 0), (reach, reach), (reach, reach)], mode="reflect")
    expected = np.zeros_like(images)
    for row, y, x in product(range(2), range(7), range(6)):
        total = weights = 0.0
        for down, right in product(range(-reach, reach + 1), repeat=2):
            other = wide[row, :, y + reach + down, x + reach + right]
            unlike = np.sum((other - images[row, :, y, x]) ** 2)
            weight = np.exp(-unlike / (2 * color**2) - (down**2 + right**2) / (2 * space**2))
            total, weights = total + weight * other, weights + weight
        expected[row, :, y, x] = total / weights
    points = torch.from_numpy(images)
    found = make("bilateral", kernel_size=5, sigma_color=color, sigma_space=space).preprocess(points, make_rng(points))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("patch", "search"), [(3, 7), (5, 3)])
def test_non_local_means_is_its_formula(
    make: Make, make_rng: Callable[..., Rng], channels: int, patch: int, search: int
) -> None:
    images = scene(channels)
    edge, reach, strength = patch // 2, search // 2, 0.4
    pad = edge + reach
    wide = np.pad(images, [(0, 0), (0, 0), (pad, pad), (pad, pad)], mode="reflect")
    expected = np.zeros_like(images)

    def around(row: int, y: int, x: int) -> np.ndarray:
        return wide[row, :, y + pad - edge : y + pad + edge + 1, x + pad - edge : x + pad + edge + 1]

    for row, y, x in product(range(2), range(7), range(6)):
        total = weights = 0.0
        for down, right in product(range(-reach, reach + 1), repeat=2):
            unlike = np.mean((around(row, y, x) - around(row, y + down, x + right)) ** 2)
            weight = np.exp(-unlike / strength**2)
            total, weights = total + weight * wide[row, :, y + pad + down, x + pad + right], weights + weight
        expected[row, :, y, x] = total / weights
    points = torch.from_numpy(images)
    defense = make("nl-means", patch_size=patch, search_size=search, strength=strength)
    np.testing.assert_allclose(defense.preprocess(points, make_rng(points)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("spec", [{"name": "bilateral", "sigma_color": 1e-3}, {"name": "nl-means", "strength": 1e-3}])
def test_without_tolerance_nothing_changes(make: Make, make_rng: Callable[..., Rng], spec: dict[str, Any]) -> None:
    images = torch.from_numpy(np.tile(scene(3), (1, 1, 2, 2)))
    torch.testing.assert_close(make(**spec).preprocess(images, make_rng(images)), images)


def test_windows_that_do_not_fit_are_refused(make: Make, make_rng: Callable[..., Rng]) -> None:
    images = torch.rand(1, 1, 6, 4)
    rng = make_rng(images)
    make("bilateral", kernel_size=7).preprocess(images, rng)
    with pytest.raises(InputError, match=r"'bilateral' has a kernel_size of 9; images are 6 x 4.*at most 7"):
        make("bilateral", kernel_size=9).preprocess(images, rng)
    make("nl-means", search_size=5).preprocess(images, rng)
    with pytest.raises(InputError, match=r"'nl-means' has a search_size of 7; images are 6 x 4.*at most 5"):
        make("nl-means", search_size=7).preprocess(images, rng)
    with pytest.raises(InputError, match=r"patch_size.*'nl-means'.*4 is no odd number"):
        make("nl-means", patch_size=4)
