"""The DCT is scipy's, keeps lengths and goes back."""

import numpy as np
import pytest
import scipy.fft
import torch

from guard import dct2, idct2


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 1, 28, 28), (3, 5, 7), (1, 1, 1, 1), (1, 3, 224, 224)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_scipys_and_its_inverse_goes_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    coefficients = dct2(images)
    expected = scipy.fft.dctn(images.double().numpy(), axes=(-2, -1), norm="ortho")
    exact = 1e-5 if dtype == torch.float32 else 1e-12
    assert np.abs(coefficients.double().numpy() - expected).max() < exact * max(1, np.abs(expected).max())
    torch.testing.assert_close(idct2(coefficients), images, rtol=0, atol=exact)
    torch.testing.assert_close(coefficients.square().sum(), images.square().sum())


def test_a_transform_made_in_inference_mode_can_be_differentiated_later() -> None:
    with torch.inference_mode():
        dct2(torch.rand(1, 9, 11))
    images = torch.rand(1, 9, 11, requires_grad=True)
    dct2(images).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None


def test_a_constant_image_has_the_lowest_frequency_alone() -> None:
    coefficients = dct2(torch.full((1, 4, 6), 0.5, dtype=torch.float64))
    assert coefficients[0, 0, 0].item() == pytest.approx(0.5 * 24**0.5)
    assert coefficients.flatten()[1:].abs().max() < 1e-12
