"""Total variation minimization against a slow solver, closed forms and the draws it promises."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from guard import Defense, Rng

Make = Callable[..., Defense]


def drawn(images: Tensor, rng: Rng, rate: float) -> Tensor:
    """What the defense keeps with this rng."""
    return rng.uniform(shape=tuple(images.shape[1:])) >= rate


def objective(found: np.ndarray, image: np.ndarray, kept: np.ndarray, weight: float, smooth: float = 0.0) -> float:
    """Of one channel."""
    down, right = np.zeros_like(found), np.zeros_like(found)
    down[:-1], right[:, :-1] = np.diff(found, axis=0), np.diff(found, axis=1)
    lengths = np.sqrt(down**2 + right**2 + smooth**2)
    return float((kept * (found - image) ** 2).sum() + weight * lengths.sum())


@pytest.mark.parametrize(("rate", "weight"), [(0.5, 0.03), (0.0, 0.1), (0.3, 0.3)])
def test_the_objective_is_what_a_slow_solver_reaches(
    make: Make, make_rng: Callable[..., Rng], rate: float, weight: float
) -> None:
    images = torch.rand(2, 2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = drawn(images, make_rng(images), rate).numpy()
    parameters = {"drop_rate": rate, "weight": weight}
    found, begun = (
        make("tv-minimization", steps=steps, **parameters).preprocess(images, make_rng(images)).numpy()
        for steps in (500, 1)
    )
    for place in np.ndindex(2, 2):
        image, mask = images[place].numpy(), kept[place]
        point = image.ravel()
        for smooth in (1e-2, 1e-3, 1e-4, 1e-5):  # L-BFGS wants a smooth objective

            def smoothed(values: np.ndarray, image: np.ndarray = image, mask: np.ndarray = mask, s: float = smooth):
                return objective(values.reshape(5, 6), image, mask, weight, s)

            point = minimize(smoothed, point, method="L-BFGS-B", bounds=[(0, 1)] * 30, options={"maxfun": 10**5}).x
        best = objective(point.reshape(5, 6), image, mask, weight)
        reached = objective(found[place], image, mask, weight)
        assert reached == pytest.approx(best, rel=3e-3)
        assert reached <= best * 1.001
        assert objective(begun[place], image, mask, weight) > best * 1.03


def test_two_values_and_a_large_weight_have_closed_forms(make: Make, make_rng: Callable[..., Rng]) -> None:
    pair = torch.tensor([0.2, 0.9], dtype=torch.float64).view(1, 1, 1, 2)
    settings = {"drop_rate": 0.0, "steps": 2000}
    found = make("tv-minimization", weight=0.1, **settings).preprocess(pair, make_rng(pair))
    torch.testing.assert_close(found, pair + torch.tensor([0.05, -0.05]), rtol=0, atol=1e-6)  # each moves weight / 2
    images = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = drawn(images, make_rng(images), 0.5)
    flat = make("tv-minimization", weight=50, steps=6000).preprocess(images, make_rng(images))
    mean = (images * kept).sum((2, 3)) / kept.sum((2, 3))
    torch.testing.assert_close(flat, mean[..., None, None].expand_as(flat), rtol=0, atol=2e-3)


def test_what_is_dropped_has_no_say_and_channels_drop_on_their_own(make: Make, make_rng: Callable[..., Rng]) -> None:
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    kept = drawn(images, make_rng(images), 0.5)
    assert not torch.equal(kept[:, 0], kept[:, 1])
    defense = make("tv-minimization")
    expected = defense.preprocess(images, make_rng(images))
    other = torch.where(kept, images, torch.rand(images.shape, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(defense.preprocess(other, make_rng(images)), expected)
    other = torch.where(kept, other.flip(3), images)
    assert not torch.equal(defense.preprocess(other, make_rng(images)), expected)


def test_the_surrogate_foresees_what_a_change_does_better_than_the_identity(
    make: Make, make_rng: Callable[..., Rng]
) -> None:
    generator = torch.Generator().manual_seed(4)
    images = F.interpolate(torch.rand(8, 3, 4, 4, generator=generator), scale_factor=4, mode="bilinear")
    change = 0.1 * torch.randn(images.shape, generator=generator)
    moved, defense = (images + change).clamp(0, 1), make("tv-minimization")
    happened = torch.zeros_like(images)
    for seed in range(10):
        rngs = make_rng(images, seed), make_rng(images, seed)
        happened += defense.preprocess(moved, rngs[0]) - defense.preprocess(images, rngs[1])
    rng = make_rng(images)
    foreseen = defense.surrogate(moved, rng) - defense.surrogate(images, rng)
    found, identity = (
        torch.corrcoef(torch.stack([happened.flatten(), guess.flatten()]))[0, 1] for guess in (foreseen, moved - images)
    )
    assert found > 0.75
    assert identity < found - 0.05


def test_the_surrogate_is_the_mean_of_filling_in_over_draws(make: Make, make_rng: Callable[..., Rng]) -> None:
    images = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    alone = torch.zeros(1, 1, 3, 3)
    alone[..., 1, 1] = 1
    defense = make("tv-minimization", drop_rate=0.25)
    seen = defense.surrogate(alone, make_rng(alone))[0, 0]
    torch.testing.assert_close(
        seen, torch.tensor([[1 / 5, 2 / 8, 1 / 5], [2 / 8, 3, 2 / 8], [1 / 5, 2 / 8, 1 / 5]]) / 4
    )
    assert torch.equal(make("tv-minimization", drop_rate=0).surrogate(images, make_rng(images)), images)
