"""Amplitude mixing: whose amplitudes, whose phases."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from guard import Defense

COUNT = 300


def pictures(height: int, width: int) -> Tensor:
    """Faint ones, so that nothing has to be clamped."""
    noise = torch.rand(COUNT, 2, height, width, generator=Generator().manual_seed(1), dtype=torch.float64)
    return 0.5 + 0.02 * (noise - 0.5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (6, 5)])
@pytest.mark.parametrize("strength", [None, 0.4])
def test_amplitudes_are_mixed_and_phases_kept(
    make: Callable[..., Defense], height: int, width: int, strength: float | None
) -> None:
    """With NumPy's transform of the whole plane, both halves of it."""
    images, targets, generator = pictures(height, width), torch.arange(COUNT), Generator().manual_seed(4)
    given = {} if strength is None else {"strength": strength}
    mixed, kept = make("amplitude-mixing", **given).augment(images, targets, generator)
    assert kept is targets
    generator.manual_seed(4)
    partner = torch.randperm(COUNT, generator=generator).numpy()
    before, after = (np.fft.fft2(each.numpy()) for each in (images, mixed))
    np.testing.assert_allclose(after / np.abs(after), before / np.abs(before), atol=1e-6)
    moved = partner != np.arange(COUNT)
    own, other, found = np.abs(before)[moved], np.abs(before)[partner][moved], np.abs(after)[moved]
    each = np.median((found - own) / (other - own), (1, 2, 3))
    np.testing.assert_allclose(found, own + each[:, None, None, None] * (other - own))
    top = 1 if strength is None else strength
    assert 0 <= each.min() < 0.05 * top
    assert 0.95 * top < each.max() <= top * (1 + 1e-6)
    assert each.mean() == pytest.approx(top / 2, rel=0.1)


def test_without_strength_images_stay(make: Callable[..., Defense]) -> None:
    images = torch.rand(COUNT, 3, 7, 8, generator=Generator().manual_seed(1))
    mixed, _ = make("amplitude-mixing", strength=0).augment(images, torch.arange(COUNT), Generator())
    torch.testing.assert_close(mixed, images)
