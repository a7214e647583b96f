"""Denoising against scipy's filters and closed forms."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from guard import Defense, InputError, Registry, Rng


@pytest.fixture
def apply(registry: Registry, make_rng: Callable[..., Rng]) -> Callable[..., Tensor]:
    def call(images: Tensor, name: str, **parameters: object) -> Tensor:
        defense: Defense = registry.create("defense", {"name": name, **parameters})
        return defense.preprocess(images, make_rng(images))

    return call


@pytest.mark.parametrize(("sigma", "side"), [(1.0, 5), (0.6, 3), (2.0, 7)])
def test_gaussian_blur_is_scipys(apply: Callable[..., Tensor], images: Tensor, sigma: float, side: int) -> None:
    expected = images.numpy()
    for axis in (2, 3):
        expected = ndimage.gaussian_filter1d(expected, sigma, axis, mode="mirror", radius=side // 2)
    blurred = apply(images, "gaussian-blur", sigma=sigma, kernel_size=side)
    assert blurred.dtype == torch.float64
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("side", [3, 5])
def test_median_is_scipys(apply: Callable[..., Tensor], images: Tensor, side: int) -> None:
    expected = ndimage.median_filter(images.numpy(), (1, 1, side, side), mode="mirror")
    filtered = apply(images, "median", kernel_size=side)
    assert filtered.dtype == torch.float64
    np.testing.assert_array_equal(filtered.numpy(), expected)


def test_median_sends_the_gradient_to_the_pixel_it_took(apply: Callable[..., Tensor]) -> None:
    points = torch.randperm(36, generator=torch.Generator().manual_seed(0)).double().view(1, 1, 6, 6) / 36
    points.requires_grad_()
    filtered = apply(points, "median")
    filtered[0, 0, 2, 3].backward()
    assert torch.equal(points.grad != 0, points.detach() == filtered[0, 0, 2, 3])
    assert points.grad.sum() == 1
    assert torch.equal(filtered, apply(points.detach(), "median"))


def test_blur_keeps_white_white_and_its_gradient(apply: Callable[..., Tensor]) -> None:
    white = torch.ones(1, 1, 9, 9, requires_grad=True)
    blurred = apply(white, "gaussian-blur", sigma=0.2, kernel_size=3)  # in float32 its weights sum to 1 + 2e-7
    assert blurred.max() <= 1
    blurred[0, 0, 4, 4].backward()
    assert white.grad.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_bit_depth_takes_the_nearest_level(apply: Callable[..., Tensor], images: Tensor, bits: int) -> None:
    levels = torch.linspace(0, 1, 2**bits, dtype=torch.float64)
    nearest = levels[(images[..., None] - levels).abs().argmin(-1)]
    reduced = apply(images, "bit-depth", bits=bits)
    torch.testing.assert_close(reduced, nearest, rtol=0, atol=1e-15)


def test_bit_depth_leaves_8_bit_images_alone(apply: Callable[..., Tensor]) -> None:
    images = (torch.arange(256).float() / 255).view(1, 1, 16, 16)
    assert torch.equal(apply(images, "bit-depth", bits=8), images)


def test_bit_depth_is_bridged_by_the_identity(registry: Registry, images: Tensor, make_rng: Callable[..., Rng]) -> None:
    defense = registry.create("defense", "bit-depth")
    assert not defense.differentiable
    assert torch.equal(defense.surrogate(images, make_rng(images)), images)


@pytest.mark.parametrize("name", ["gaussian-blur", "median", "bit-depth"])
def test_images_stay_in_range_and_each_on_its_own(apply: Callable[..., Tensor], images: Tensor, name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        given = images.to(dtype)
        result = apply(given, name)
        assert result.dtype == dtype
        assert 0 <= result.min() <= result.max() <= 1
        torch.testing.assert_close(result[2:3], apply(given[2:3], name), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "parameter", "value", "hint"),
    [
        ("gaussian-blur", "kernel_size", 4, "4 is no odd number"),
        ("gaussian-blur", "kernel_size", 1, "at least 3"),
        ("gaussian-blur", "sigma", 0, "above 0"),
        ("median", "kernel_size", 2, "2 is no odd number"),
        ("bit-depth", "bits", 0, "at least 1"),
        ("bit-depth", "bits", 9, "at most 8"),
    ],
)
def test_parameters_without_meaning_are_refused(
    registry: Registry, name: str, parameter: str, value: float, hint: str
) -> None:
    with pytest.raises(InputError, match=f"{parameter}.*'{name}'.*{hint}"):
        registry.create("defense", {"name": name, parameter: value})


@pytest.mark.parametrize("name", ["gaussian-blur", "median"])
def test_a_window_larger_than_the_reflected_image_is_refused(apply: Callable[..., Tensor], name: str) -> None:
    apply(torch.rand(1, 1, 4, 6), name, kernel_size=7)
    with pytest.raises(InputError, match=f"'{name}' has a kernel_size of 9; images are 4 x 6.*at most 7"):
        apply(torch.rand(1, 1, 4, 6), name, kernel_size=9)
