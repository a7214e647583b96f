"""The shapes that the Square attack draws: sides, bumps and tiles."""

import numpy as np
import pytest
import torch
from guard_plugins.attacks.squares import L2Squares, LinfSquares, _bump

from guard import Rng

pytestmark = pytest.mark.usefixtures("global_generator_untouched")


def test_which_sides_fit() -> None:
    assert [LinfSquares.fitting(side) for side in (0, 1, 2, 5)] == [1, 1, 2, 5]
    assert [L2Squares.fitting(side) for side in (0, 1, 2, 3, 4, 5)] == [3, 3, 3, 3, 5, 5]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 4), (2, 5), (3, 5), (6, 13)])
def test_a_bump_is_the_sum_of_rectangles(height: int, width: int) -> None:
    """Rectangles around the middle, each a pixel larger to all sides and weaker, as the authors draw them."""
    expected = np.zeros((height, width))
    for ring in range(max(height, width) // 2 + 1):
        rows = slice(max(height // 2 - ring, 0), height // 2 + ring + 1)
        expected[rows, max(width // 2 - ring, 0) : width // 2 + ring + 1] += 1 / (ring + 1) ** 2
    np.testing.assert_allclose(_bump(height, width).numpy(), expected / np.linalg.norm(expected), atol=1e-12)


def test_the_l2_start_is_a_grid_of_opposite_bumps() -> None:
    images = torch.full((9, 2, 28, 33), 0.5, dtype=torch.float64)
    moved = (L2Squares.start(images, 0.3, Rng(0, torch.arange(9), (2, 28, 33))) - images) / 0.3
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.ones(9).double())
    assert (moved[:, :, 0] == 0).all(), "25 of 28 rows are tiles of side 5, those in the middle"
    assert (moved[:, :, 26:] == 0).all()
    assert (moved[..., 0] == 0).all(), "30 of 33 columns"
    assert (moved[..., 31:] == 0).all()
    tiles = moved[:, :, 1:26, 1:31].unfold(2, 5, 5).unfold(3, 5, 5)
    one = torch.cat([_bump(2, 5), -_bump(3, 5)]) / 2**0.5 / 60**0.5  # 5 x 6 tiles in two channels
    kinds = [one, -one, one.T, -one.T]
    found = torch.stack([(tiles - kind).abs().amax((-2, -1)) < 1e-12 for kind in kinds])
    assert (found.sum(0) == 1).all()
    assert found.double().mean((1, 2, 3, 4)).tolist() == pytest.approx([0.25] * 4, abs=0.06)
    lies = found[:2].any(0)
    assert (lies[:, 0] == lies[:, 1]).all(), "all channels of a tile lie the same way"
