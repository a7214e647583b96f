"""Bands: equally many coefficients in each, wherever they lie, and how many by default."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from guard_plugins.attacks.bands import Band, mask, side_of
from torch import Tensor, nn

from guard import Goal, InputError, Registry, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
BANDS: tuple[Band, ...] = get_args(Band)


def rng_of(images: Tensor) -> Rng:
    return Rng(0, torch.arange(len(images)), tuple(images.shape[1:]))


@pytest.mark.parametrize("shape", [(6, 6), (7, 7), (8, 5), (5, 9)], ids=str)
def test_every_band_keeps_as_many_coefficients(shape: tuple[int, int]) -> None:
    images, (height, width) = torch.zeros(4, 3, *shape), shape
    for side in range(1, min(shape) + 1):
        masks = {band: mask(band, side, images, rng_of(images)) for band in BANDS}
        for kept in masks.values():
            assert kept.shape == (4, 1, height, width)
            assert kept.unique().tolist() in ([0, 1], [1])
            assert kept.sum((1, 2, 3)).tolist() == [side**2] * 4
        assert masks["low"][:, :, :side, :side].all()
        assert masks["high"][:, :, height - side :, width - side :].all()
        rows, columns = (masks["mid"][0, 0].any(axis).nonzero().squeeze(1) for axis in (1, 0))
        for places, length in ((rows, height), (columns, width)):
            assert places.tolist() == list(range(int(places[0]), int(places[0]) + side))
            assert length - 1 - int(places[-1]) - int(places[0]) in (0, 1), "as far from the top as from the bottom"


def test_a_random_band_belongs_to_its_image_and_favours_no_coefficient() -> None:
    images = torch.zeros(2000, 1, 4, 5)
    kept = mask("random", 2, images, rng_of(images))
    assert (kept.mean(0) - 4 / 20).abs().max() < 0.05, "standard deviation 0.009"
    index = torch.tensor([7, 3])
    assert torch.equal(mask("random", 2, images[:2], Rng(0, index, (1, 4, 5))), kept[index])
    assert not torch.equal(mask("random", 2, images[:2], Rng(1, index, (1, 4, 5))), kept[index])


@pytest.mark.parametrize(("side", "kept"), [(1, 1), (4, 1), (28, 7), (32, 8), (224, 56), (299, 75)])
def test_a_quarter_of_the_shorter_side_is_kept_by_default(side: int, kept: int) -> None:
    assert side_of(None, torch.zeros(1, 1, side, side + 3), "simba-dct") == kept
    assert side_of(side, torch.zeros(1, 1, side + 3, side), "simba-dct") == side


@pytest.mark.parametrize("name", ["low-frequency", "low-frequency-noise", "simba-dct"])
def test_more_coefficients_than_the_image_has_are_refused(
    name: str, registry: Registry, make_victim: Make, curved: nn.Module, images: Tensor
) -> None:
    made = registry.create("attack", {"name": name, "dimension": 5})
    goal, threat = Goal(torch.zeros(8, dtype=torch.int64)), ThreatModel(norm="linf", epsilon=1)
    with pytest.raises(InputError) as caught:
        made.perturb(make_victim(curved, images), images, goal, threat, rng_of(images))
    assert str(caught.value) == (
        f"dimension of attack '{name}' is 5, and the images have 4 x 4 coefficients. Give at most 4"
    )
