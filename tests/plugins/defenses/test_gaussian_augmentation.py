"""Gaussian data augmentation."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from guard import Defense, InputError

Make = Callable[..., Defense]


def augment(defense: Defense, images: Tensor, seed: int = 0) -> Tensor:
    targets = torch.arange(len(images))
    augmented, same = defense.augment(images, targets, Generator().manual_seed(seed))
    assert same is targets
    return augmented


@pytest.mark.usefixtures("global_generator_untouched")
def test_noise_has_the_standard_deviation_and_is_clamped(make: Make) -> None:
    grey = torch.full((200, 3, 8, 8), 0.5)
    noise = augment(make("gaussian-augmentation", sigma=0.05, share=1), grey) - 0.5
    assert noise.std() == pytest.approx(0.05, rel=0.02)
    assert abs(noise.mean()) < 0.001
    black = augment(make("gaussian-augmentation", sigma=0.3, share=1), torch.zeros(200, 3, 8, 8))
    assert black.min() == 0
    assert (black == 0).double().mean() == pytest.approx(0.5, abs=0.01)
    assert augment(make("gaussian-augmentation", sigma=2, share=1), grey).max() == 1


@pytest.mark.parametrize("share", [0.25, None, 1])
def test_the_share_of_images_is_noisy_and_others_are_as_they_were(share: float | None, make: Make) -> None:
    images = torch.full((2000, 1, 2, 2), 0.5, dtype=torch.float64)
    given = {} if share is None else {"share": share}
    noisy = (augment(make("gaussian-augmentation", **given), images) != images).flatten(1)
    assert torch.equal(noisy.all(1), noisy.any(1))
    assert noisy.all(1).double().mean() == pytest.approx(share or 0.5, abs=0.04)


def test_draws_follow_from_the_generator_and_differ_by_image(make: Make) -> None:
    images, defense = torch.full((4, 3, 8, 8), 0.5), make("gaussian-augmentation", share=1)
    one = augment(defense, images, 1)
    assert torch.equal(one, augment(defense, images, 1))
    assert not torch.equal(one, augment(defense, images, 2))
    assert not torch.equal(one[0], one[1])


def test_bad_parameters_are_refused(make: Make) -> None:
    for key, value in (("sigma", 0), ("sigma", -1), ("share", 0), ("share", 1.5)):
        with pytest.raises(InputError, match=f"{key} of defense 'gaussian-augmentation' is {value}; it must be"):
            make("gaussian-augmentation", **{key: value})
