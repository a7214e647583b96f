"""JPEG against the standard's formula, and the model of it that gradients go through."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor

from guard import Defense, InputError, Rng
from guard.stage import bridged

Make = Callable[..., Defense]

LUMA = np.array(  # table K.1 of the standard, which is that of quality 50
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def scene(channels: int, height: int = 16, width: int = 24) -> Tensor:
    """Smooth images (3, C, H, W) with some noise, on no 8-bit grid."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(3, channels, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize(("quality", "scale"), [(10, 500), (50, 100), (75, 50), (90, 20)])
def test_grey_blocks_are_the_standards(make: Make, make_rng: Callable[..., Rng], quality: int, scale: int) -> None:
    images = scene(1)
    table = ((LUMA * scale + 50) // 100).clip(1, 255)[:, None, :]
    levels = make("jpeg", quality=quality).preprocess(images, make_rng(images)).numpy() * 255
    assert np.abs(levels - levels.round()).max() < 1e-4, "a file has 8 bits"
    written, read = (
        scipy.fft.dctn(values.reshape(3, 2, 8, 3, 8) - 128.0, axes=(2, 4), norm="ortho") / table
        for values in (np.round(images.numpy() * 255), levels)
    )
    steps = read.round()
    assert np.abs(steps - written).max() < 0.54, "to the nearest; libjpeg's transform is in whole numbers"
    assert np.abs(steps - written).max() > 0.4
    pixels = scipy.fft.idctn(steps * table, axes=(2, 4), norm="ortho") + 128
    assert np.abs(pixels.clip(0, 255).reshape(levels.shape) - levels).max() < 1.5


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (17, 30)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("codec", ["real", "differentiable"])
def test_plain_images_of_any_size_stay_as_they_are(
    make: Make, make_rng: Callable[..., Rng], codec: str, channels: int, size: tuple[int, int]
) -> None:
    color = torch.tensor([0.8, 0.3, 0.1])[:channels, None, None]
    images = color.expand(2, channels, *size).contiguous()
    read = make("jpeg", quality=95, codec=codec).preprocess(images, make_rng(images))
    torch.testing.assert_close(read, images, rtol=0, atol=4 / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_model_of_the_codec_is_near_the_codec(make: Make, make_rng: Callable[..., Rng], channels: int) -> None:
    images = scene(channels, 32, 32)
    rng = make_rng(images)
    for quality in (20, 75):
        real, model = (
            make("jpeg", quality=quality, codec=codec).preprocess(images, rng) for codec in ("real", "differentiable")
        )
        far = (images - real).square().mean()
        assert far > 1e-4
        assert (model - real).square().mean() < far / 4


def test_only_the_real_codec_needs_a_surrogate(make: Make, make_rng: Callable[..., Rng]) -> None:
    images, rng = scene(3), make_rng(scene(3))
    real, model = make("jpeg"), make("jpeg", codec="differentiable")
    assert (real.differentiable, model.differentiable) == (False, True)
    assert not real.preprocess(images.requires_grad_(), rng).requires_grad
    assert torch.equal(model.surrogate(images, rng), model.preprocess(images, rng))
    passed = bridged([real], images, rng)
    assert torch.allclose(passed, real.preprocess(images, rng), atol=1e-6)
    (through,) = torch.autograd.grad(passed.square().sum(), images)
    assert through.isfinite().all()
    assert (through.flatten(1).count_nonzero(1) == images[0].numel()).all()


def test_the_surrogate_foresees_what_a_change_does_better_than_the_identity(
    make: Make, make_rng: Callable[..., Rng]
) -> None:
    images = scene(3, 32, 32)
    change = 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    moved, defense, rng = (images + change).clamp(0, 1), make("jpeg", quality=30), make_rng(images)
    happened = defense.preprocess(moved, rng) - defense.preprocess(images, rng)
    foreseen = defense.surrogate(moved, rng) - defense.surrogate(images, rng)
    found, identity = (
        torch.corrcoef(torch.stack([happened.flatten(), guess.flatten()]))[0, 1] for guess in (foreseen, moved - images)
    )
    assert found > 0.9
    assert identity < found - 0.2


def test_bad_values_are_refused(make: Make, make_rng: Callable[..., Rng]) -> None:
    for quality, hint in ((0, "at least 1"), (101, "at most 100")):
        with pytest.raises(InputError, match=f"quality.*'jpeg'.*{hint}"):
            make("jpeg", quality=quality)
    images = torch.rand(1, 4, 8, 8)
    with pytest.raises(InputError, match="'jpeg' takes images of 1 or 3 channels; these have 4"):
        make("jpeg").preprocess(images, make_rng(images))
