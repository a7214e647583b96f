"""The DCT low pass against scipy's transform."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor

from guard import Defense, InputError, Rng

Make = Callable[..., Defense]


@pytest.mark.parametrize(("dimension", "kept"), [(0.5, (3, 4)), (0.2, (1, 2)), (0.01, (1, 1)), (0.9, (5, 7))])
def test_only_the_lowest_coefficients_are_left(
    make: Make, make_rng: Callable[..., Rng], dimension: float, kept: tuple[int, int]
) -> None:
    images = 0.5 + 0.02 * torch.randn(4, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = scipy.fft.dctn(images.numpy(), axes=(2, 3), norm="ortho")
    expected[:, :, kept[0] :] = 0
    expected[..., kept[1] :] = 0
    filtered = make("dct-low-pass", dimension=dimension).preprocess(images, make_rng(images))
    found = scipy.fft.dctn(filtered.numpy(), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_all_of_them_are_the_image_and_ringing_is_clipped(
    make: Make, make_rng: Callable[..., Rng], images: Tensor
) -> None:
    rng = make_rng(images)
    torch.testing.assert_close(make("dct-low-pass", dimension=1).preprocess(images, rng), images)
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1
    ringing = make("dct-low-pass").preprocess(step, make_rng(step))
    assert (ringing.min(), ringing.max()) == (0, 1)


@pytest.mark.parametrize(("dimension", "hint"), [(0, "above 0"), (8, "at most 1")])
def test_a_share_is_asked_for(make: Make, dimension: float, hint: str) -> None:
    with pytest.raises(InputError, match=f"dimension.*'dct-low-pass'.*{hint}"):
        make("dct-low-pass", dimension=dimension)
