"""The shape-bias augmentation: what it changes, what it leaves, and where its draws come from."""

from collections.abc import Callable

import pytest
import torch
from kornia.filters import gaussian_blur2d
from torch import Generator, Tensor

from guard import Registry

OFF = {"grayscale": 0, "jitter": 0, "blur": 0, "noise": 0}


@pytest.fixture
def augment(registry: Registry) -> Callable[..., Tensor]:
    def call(images: Tensor, seed: int = 0, **parameters: float) -> Tensor:
        defense = registry.create("defense", {"name": "shape-bias", **parameters})
        targets = torch.arange(len(images))
        augmented, kept = defense.augment(images, targets, Generator().manual_seed(seed))
        assert kept is targets
        return augmented

    return call


def pictures(count: int = 64, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, 8, 8, generator=Generator().manual_seed(3))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_stay_images(augment: Callable[..., Tensor], channels: int, dtype: torch.dtype) -> None:
    images = pictures(channels=channels).to(dtype)
    before = images.clone()
    augmented = augment(images)
    assert augmented.shape == images.shape
    assert augmented.dtype == dtype
    assert 0 <= augmented.min() <= augmented.max() <= 1
    assert torch.equal(images, before)
    assert not torch.equal(augmented, images)


@pytest.mark.usefixtures("global_generator_untouched")
def test_all_follows_from_the_generator(augment: Callable[..., Tensor]) -> None:
    images = pictures()
    first = augment(images, seed=5)
    assert torch.equal(first, augment(images, seed=5))
    assert not torch.equal(first, augment(images, seed=6))


def test_with_all_off_nothing_changes(augment: Callable[..., Tensor]) -> None:
    assert torch.equal(augment(pictures(), **OFF), pictures())


@pytest.mark.parametrize("part", ["grayscale", "jitter", "blur", "noise"])
def test_each_part_meets_its_share_of_the_images(augment: Callable[..., Tensor], part: str) -> None:
    images = pictures(2000)
    changed = (augment(images, **(OFF | {part: 0.3})) != images).flatten(1).any(1).double().mean()
    assert changed == pytest.approx(0.3, abs=0.04)  # four standard deviations


def test_grayscale_takes_the_colours(augment: Callable[..., Tensor]) -> None:
    grey = augment(pictures(), **(OFF | {"grayscale": 1}))
    luma = torch.einsum("nchw,c->nhw", pictures(), torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(grey, luma[:, None].expand_as(grey))


def test_noise_has_its_standard_deviation(augment: Callable[..., Tensor]) -> None:
    noise = augment(torch.full((500, 1, 8, 8), 0.5), **(OFF | {"noise": 1, "noise_std": 0.05})) - 0.5
    assert noise.std() == pytest.approx(0.05, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.001)


def test_blur_is_each_images_own_gaussian(augment: Callable[..., Tensor]) -> None:
    """The answer to a point of light has the sum 1 and the variance of a sigma between a tenth and the largest."""
    light = torch.zeros(200, 1, 9, 9, dtype=torch.float64)
    light[:, :, 4, 4] = 1
    blurred = augment(light, **(OFF | {"blur": 1, "blur_sigma": 0.8}))
    torch.testing.assert_close(blurred.sum((1, 2, 3)), torch.ones(200, dtype=torch.float64))
    spread = (blurred.sum((1, 2)) * (torch.arange(9) - 4) ** 2).sum(1)
    bounds = torch.tensor([[0.08, 0.08], [0.8, 0.8]], dtype=torch.float64)
    narrow, wide = gaussian_blur2d(light[:2], 5, bounds).sum((1, 2)) @ ((torch.arange(9) - 4.0) ** 2).double()
    assert narrow <= spread.min() < spread.max() <= wide
    assert len(spread.unique()) == 200


def test_grey_images_get_brightness_and_contrast_only(augment: Callable[..., Tensor]) -> None:
    """Both are affine in the pixel, so away from the borders of the range what comes out is affine in what went in."""
    images = 0.45 + 0.1 * pictures(8, channels=1).double()
    jittered = augment(images, **(OFF | {"jitter": 1, "jitter_strength": 0.4}))
    for before, after in zip(images.flatten(1), jittered.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack([before, after]))[0, 1] == pytest.approx(1, abs=1e-9)
        assert 0.6**2 * 0.99 <= after.std() / before.std() <= 1.4**2 * 1.01
        assert 0.6 * 0.99 <= after.mean() / before.mean() <= 1.4 * 1.01
