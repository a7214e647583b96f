"""Random convolution: the kernels, what they do to an image, and how much of it remains."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from guard_plugins.defenses.random_convolution import RandomConvolution, convolved
from torch import Generator, Tensor

from guard import Defense, InputError


def pictures(count: int, channels: int = 3, side: int = 9) -> Tensor:
    return torch.rand(count, channels, side, side, generator=Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("side", [1, 3, 7])
def test_an_identity_kernel_leaves_images_as_they_are(side: int) -> None:
    kernels = torch.zeros(5, 3, 3, side, side, dtype=torch.float64)
    kernels[..., side // 2, side // 2] = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(convolved(pictures(5), kernels), pictures(5))


def test_each_image_meets_its_own_kernel_on_grey_ground() -> None:
    images = pictures(4)
    kernels = torch.randn(4, 3, 3, 5, 5, generator=Generator().manual_seed(2), dtype=torch.float64)
    expected = []
    for image, kernel in zip(images, kernels, strict=True):
        padded = F.pad(image[None], (2, 2, 2, 2), value=0.5) - 0.5
        expected.append(F.conv2d(padded, kernel) + 0.5)
    torch.testing.assert_close(convolved(images, kernels), torch.cat(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_kernels_are_kaimings_of_every_size(channels: int) -> None:
    kernels = RandomConvolution()._kernels(4000, channels, Generator().manual_seed(0))
    assert kernels.shape == (4000, channels, channels, 7, 7)
    reach = (kernels.flatten(1, 2) != 0).any(1).double().amax(1).sum(1)  # columns that are not empty
    for size in (1, 3, 5, 7):
        chosen = kernels[reach == size]
        assert len(chosen) / 4000 == pytest.approx(1 / 4, abs=0.03)
        edge = (7 - size) // 2
        inner = chosen[..., edge : 7 - edge, edge : 7 - edge]
        assert inner.square().sum() == chosen.square().sum()
        assert inner.var() * size**2 * channels == pytest.approx(1, rel=0.1)
        assert abs(inner.mean()) * size < 0.1


def test_the_image_and_its_convolution_are_mixed_uniformly(make: Callable[..., Defense]) -> None:
    """One channel, one pixel: what is left of the distance to grey is alpha + (1 - alpha) w, with the mean 1/2 and the
    second moment 1/3 + 1/3."""
    images, targets = 0.5 + 0.001 * (pictures(4000, 1, 2) - 0.5), torch.arange(4000)
    mixed, kept = make("random-convolution", sizes=(1,)).augment(images, targets, Generator().manual_seed(0))
    assert kept is targets
    factors = ((mixed - 0.5) / (images - 0.5)).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    assert factors[:, 0].mean() == pytest.approx(0.5, abs=0.04)
    assert factors[:, 0].square().mean() == pytest.approx(2 / 3, abs=0.06)


def test_what_leaves_the_range_is_clamped_before_it_is_mixed(make: Callable[..., Defense]) -> None:
    """White is at least alpha then, and black at most 1 - alpha."""
    images = torch.ones(3000, 1, 1, 1)
    mixed, _ = make("random-convolution", sizes=(1,)).augment(images, torch.arange(3000), Generator().manual_seed(0))
    black, _ = make("random-convolution", sizes=(1,)).augment(0 * images, images, Generator().manual_seed(0))
    torch.testing.assert_close(mixed, 1 - black)
    assert mixed.min() > 0
    assert mixed.max() == 1
    assert (mixed == 1).double().mean() == pytest.approx(0.1587, abs=0.02)  # where the weight is at least 1


@pytest.mark.parametrize(
    ("sizes", "message"), [((3, 4), "write an odd one such as 5"), ((-1,), "such as 1"), ((), "sizes")]
)
def test_bad_sizes_are_refused(make: Callable[..., Defense], sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make("random-convolution", sizes=sizes)
