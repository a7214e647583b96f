"""Edge blending: what an edge is, and how much of it is seen."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from guard_plugins.defenses.edge_blending import edges
from scipy.ndimage import sobel
from torch import Generator

from guard import Defense


def test_edges_are_sobels_and_the_steepest_channels() -> None:
    images = torch.rand(6, 3, 9, 12, generator=Generator().manual_seed(0), dtype=torch.float64)
    images = (3 * images - 1).clamp(0, 1)
    planes = images.flatten(0, 1).numpy()
    steep = [np.hypot(*(sobel(plane, axis=axis, mode="nearest") for axis in (0, 1))) for plane in planes]
    expected = np.minimum(np.reshape(steep, images.shape).max(1, keepdims=True) / 4, 1)
    np.testing.assert_allclose(edges(images).numpy(), expected, atol=1e-12)
    assert 0.01 < (edges(images) == 1).double().mean() < 0.9


@pytest.mark.parametrize("turned", [False, True])
def test_a_step_from_black_to_white_is_one_and_the_rest_nothing(turned: bool) -> None:
    images = torch.zeros(1, 1, 8, 8)
    images[..., 4:] = 1
    found = edges(images.mT if turned else images)
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., 3:5] = 1
    torch.testing.assert_close(found, expected.mT if turned else expected)


@pytest.mark.parametrize("strength", [None, 1])
def test_the_share_is_uniform_and_each_images_own(make: Callable[..., Defense], strength: float | None) -> None:
    """A grey image has no edges, and is darkened by their share."""
    images, targets = torch.full((2000, 3, 4, 4), 0.5), torch.arange(2000)
    given = {} if strength is None else {"strength": strength}
    blended, kept = make("edge-blending", **given).augment(images, targets, Generator().manual_seed(0))
    assert kept is targets
    share, top = 1 - 2 * blended[:, 0, 0, 0], 0.5 if strength is None else strength
    torch.testing.assert_close(blended, ((1 - share) / 2).view(-1, 1, 1, 1).expand_as(blended))
    ranks = (share / top).sort().values
    torch.testing.assert_close(ranks, torch.linspace(0, 1, 2000), atol=0.04, rtol=0)


def test_edges_are_blended_into_all_channels(make: Callable[..., Defense]) -> None:
    images = torch.rand(20, 3, 8, 8, generator=Generator().manual_seed(0))
    blended, _ = make("edge-blending", strength=1).augment(images, torch.arange(20), Generator().manual_seed(3))
    share = torch.rand(20, generator=Generator().manual_seed(3)).view(-1, 1, 1, 1)
    torch.testing.assert_close(blended, (1 - share) * images + share * edges(images))
