"""Style mixing: whose statistics an image gets, band by band, and what becomes of its label."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from guard_plugins.defenses.style_mixing import restyled
from scipy.fft import dctn
from torch import Generator, Tensor

from guard import Defense, InputError

Make = Callable[..., Defense]
COUNT = 40


def pictures(channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    """Faint ones, of contrasts of their own, so that nothing has to be clamped."""
    generator = Generator().manual_seed(1)
    contrasts = 0.04 + 0.05 * torch.rand(COUNT, channels, 1, 1, generator=generator)
    noise = torch.randn(COUNT, channels, height, width, generator=generator)
    return (0.5 + contrasts * noise.cumsum(3) / 4).double()


def partners(seed: int = 0) -> Tensor:
    return torch.randperm(COUNT, generator=Generator().manual_seed(seed))


def augment(defense: Defense, images: Tensor, targets: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    return defense.augment(images, torch.eye(COUNT) if targets is None else targets, Generator().manual_seed(seed))


def statistics(images: Tensor, bands: int) -> np.ndarray:
    """(N, C, 1 + bands): the mean, and each octave's deviation, with SciPy's DCT and octaves written out."""
    height, width = images.shape[2:]
    coefficients = dctn(images.numpy(), axes=(2, 3), norm="ortho")
    found = np.zeros((*coefficients.shape[:2], 1 + bands))
    for row in range(height):
        for column in range(width):
            frequency = max(row / height, column / width)
            place = 0
            if frequency > 0:
                place = next((band for band in range(1, bands) if frequency >= 0.5**band), bands)
            found[:, :, place] += coefficients[:, :, row, column] ** 2
    return np.sqrt(found / (height * width))


@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 16, 16), (1, 12, 20)])
def test_at_full_strength_an_image_has_its_partners_statistics(
    make: Make, bands: int, channels: int, height: int, width: int
) -> None:
    images = pictures(channels, height, width)
    styled, _ = augment(make("style-mixing", share=1, strength=1, bands=bands), images)
    partner = images[partners()]
    np.testing.assert_allclose(statistics(styled, bands), statistics(partner, bands), rtol=1e-9)
    torch.testing.assert_close(styled.mean((2, 3)), partner.mean((2, 3)))
    torch.testing.assert_close(styled.std((2, 3)), partner.std((2, 3)))
    finer = [statistics(each, 4) for each in (styled, partner)]
    assert np.allclose(*finer, rtol=0.01) == (bands == 4)


def test_one_band_is_adain_on_pixels(make: Make) -> None:
    images = pictures()
    styled, _ = augment(make("style-mixing", share=1, strength=1, bands=1), images)
    (deviation, mean), partner = torch.std_mean(images, (2, 3), keepdim=True), partners()
    expected = (images - mean) / deviation * deviation[partner] + mean[partner]
    torch.testing.assert_close(styled, expected)


def test_strength_goes_from_the_image_to_the_styled_one(make: Make) -> None:
    images = pictures()
    none, half, full = (augment(make("style-mixing", share=1, strength=s), images)[0] for s in (0, 0.5, 1))
    assert torch.equal(none, images)
    torch.testing.assert_close(half, (images + full) / 2)


def test_the_share_is_mixed_and_others_are_as_they_were(make: Make) -> None:
    images, changed = pictures(1, 8, 8), []
    for seed in range(50):
        styled, _ = augment(make("style-mixing", share=0.3), images, seed=seed)
        changed.append((styled != images).flatten(1).any(1)[partners(seed) != torch.arange(COUNT)].double().mean())
    assert torch.stack(changed).mean() == pytest.approx(0.3, abs=0.04)


def test_flat_images_get_the_mean_and_no_noise() -> None:
    images = torch.rand(2, 3, 16, 16, generator=Generator().manual_seed(0))
    images[0] = 0.3
    styled = restyled(images, torch.tensor([1, 0]), 4)
    torch.testing.assert_close(styled[0], images[1].mean((1, 2), keepdim=True).expand(3, 16, 16), atol=2e-4, rtol=0)
    torch.testing.assert_close(styled[1], torch.full((3, 16, 16), 0.3), atol=1e-5, rtol=0)


def test_probabilities_are_mixed(make: Make) -> None:
    targets = torch.rand(COUNT, 5, generator=Generator().manual_seed(2), dtype=torch.float64).softmax(1)
    _, mixed = augment(make("style-mixing", share=1, label_share=0.8), pictures(), targets)
    torch.testing.assert_close(mixed, 0.8 * targets + 0.2 * targets[partners()])
    styled, some = augment(make("style-mixing", label_share=0.8), pictures(), targets)
    same = (styled == pictures()).flatten(1).all(1)
    assert 5 < same.sum() < COUNT - 5
    assert torch.equal(some[same], targets[same])
    torch.testing.assert_close(some[~same], (0.8 * targets + 0.2 * targets[partners()])[~same])


@pytest.mark.parametrize("targets", [torch.arange(COUNT), torch.eye(COUNT)])
def test_with_a_label_share_of_one_labels_stay(make: Make, targets: Tensor) -> None:
    _, kept = augment(make("style-mixing", label_share=1), pictures(), targets)
    assert kept is targets


def test_bad_parameters_are_refused(make: Make) -> None:
    for key, value in (("share", 1.5), ("strength", -0.1), ("label_share", 2), ("bands", 0)):
        with pytest.raises(InputError, match=f"{key} of defense 'style-mixing' is {value}; it must be"):
            make("style-mixing", **{key: value})
