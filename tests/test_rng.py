"""Rng against SplitMix64 in plain Python integers, and what makes a draw belong to its image."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from guard import Rng
from guard.rng import _GOLDEN, _mix

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def bits(seed: int, index: int, stream: int, draw: int, size: int) -> list[int]:
    """What Rng promises, in integers without a limit: independent of device, batch and chunk."""
    key = mix(mix(mix(seed + GOLDEN) + index + 1) + stream)
    start = mix(key + (draw + 1) * GOLDEN)
    return [mix(start + place * GOLDEN) for place in range(1, size + 1)]


def everything(size: int = 4) -> Rng:
    return Rng(3, torch.arange(size), (2, 3))


def test_the_mixer_is_splitmix64() -> None:
    """The published outputs for seed 1234567."""
    state = 1234567 + torch.arange(1, 6) * _GOLDEN
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [value & MASK for value in _mix(state).tolist()] == published


@pytest.mark.parametrize("seed", [0, 5, -1, 2**63, 2**64 + 5])
def test_draws_equal_the_plain_integers(seed: int) -> None:
    index = torch.tensor([0, 7, 100_000])
    rng = Rng(seed, index, (2, 2), stream=2)
    uniform, signs, integers = rng.uniform(), rng.signs(), rng.integers(1000)
    normal = rng.normal(shape=(3,))
    for row, number in enumerate(index.tolist()):
        expected = [value >> 40 for value in bits(seed, number, 2, 0, 4)]
        assert (uniform[row].double() * 2**24).flatten().tolist() == expected
        assert signs[row].flatten().tolist() == [2 * (value >> 63) - 1 for value in bits(seed, number, 2, 1, 4)]
        assert integers[row].flatten().tolist() == [(value >> 11) % 1000 for value in bits(seed, number, 2, 2, 4)]
        radii, angles = bits(seed, number, 2, 3, 3), bits(seed, number, 2, 4, 3)
        gauss = [
            math.sqrt(-2 * math.log(((a >> 11) + 1) * 2.0**-53)) * math.cos(2 * math.pi * (b >> 11) * 2.0**-53)
            for a, b in zip(radii, angles, strict=True)
        ]
        assert normal[row].tolist() == pytest.approx(gauss, rel=1e-6, abs=1e-7)


def test_seeds_that_differ_by_2_to_the_64_are_one_seed() -> None:
    assert torch.equal(Rng(5, torch.arange(3), (4,)).uniform(), Rng(2**64 + 5, torch.arange(3), (4,)).uniform())


def test_shapes_types_and_ranges() -> None:
    rng = Rng(0, torch.arange(40), (3, 32, 32))
    uniform = rng.uniform()
    assert uniform.shape == (40, 3, 32, 32)
    assert uniform.dtype == torch.float32
    assert uniform.min() >= 0
    assert uniform.max() < 1
    between = rng.uniform(-2, 6, shape=(1000,))
    assert between.min() >= -2
    assert between.max() <= 6
    assert between.mean().item() == pytest.approx(2, abs=0.05)
    assert rng.uniform(shape=()).shape == (40,)
    assert set(rng.signs().unique().tolist()) == {-1.0, 1.0}
    whole = rng.integers(5, shape=(1000,))
    assert whole.dtype == torch.int64
    assert whole.unique().tolist() == [0, 1, 2, 3, 4]
    assert rng.normal().dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 3), (), (0,)])
def test_an_empty_batch_and_an_empty_shape_draw_nothing(shape: tuple[int, ...]) -> None:
    assert everything()[torch.zeros(4, dtype=torch.bool)].uniform(shape=shape).shape == (0, *shape)
    assert everything().normal(shape=shape).shape == (4, *shape)


def test_the_distributions() -> None:
    rng = Rng(1, torch.arange(50), (800,))
    uniform, normal = rng.uniform().flatten().double().numpy(), rng.normal().flatten().double().numpy()
    assert kstest(uniform, "uniform").pvalue > 1e-3
    assert kstest(normal, "norm").pvalue > 1e-3
    assert abs(normal.var() - 1) < 0.03
    assert abs(rng.signs().mean()) < 0.02
    counts = np.bincount(rng.integers(7).flatten().numpy())
    assert np.abs(counts / counts.mean() - 1).max() < 0.06


def test_neighbours_are_not_correlated() -> None:
    """Of index, place, draw, seed and stream alike."""
    base = Rng(0, torch.arange(2), (20_000,))
    folded = base.fold(0)
    first = base.uniform()
    series = [first[0], first[1], base.uniform()[0], folded.uniform()[0], base.fold(1).uniform()[0]]
    series += [Rng(1, torch.arange(1), (20_000,)).uniform()[0], Rng(0, torch.arange(1), (20_000,), 1).uniform()[0]]
    series += [first[0].roll(1)]
    correlation = np.corrcoef(torch.stack(series).numpy()) - np.eye(len(series))
    assert np.abs(correlation).max() < 4 / 20_000**0.5


def test_a_draw_does_not_know_its_batch() -> None:
    whole = everything()
    expected = [whole.uniform(), whole.normal(), whole.fold(3).uniform(), whole.spawn().uniform()]
    order = torch.tensor([2, 0])
    part = Rng(3, order, (2, 3))
    for value in expected:
        drawn = [part.uniform, part.normal, lambda: part.fold(3).uniform(), lambda: part.spawn().uniform()]
        assert torch.equal(drawn[next(i for i, e in enumerate(expected) if e is value)](), value[order])


def test_chunks_leave_no_seam() -> None:
    """250,000 values of one image, and many images of few values, both cross the chunk's border."""
    one = Rng(0, torch.tensor([9]), (250_000,)).integers(2**53)
    many = Rng(0, torch.arange(300), (1000,)).integers(2**53)
    assert one[0, -1].item() == bits(0, 9, 0, 0, 250_000)[-1] >> 11
    assert many[299, -1].item() == bits(0, 299, 0, 0, 1000)[-1] >> 11


@pytest.mark.parametrize(
    "keep", [torch.tensor([True, False, True, False]), torch.tensor([0, 2])], ids=["mask", "index"]
)
def test_a_selection_goes_on_where_its_images_stand(keep: torch.Tensor) -> None:
    whole, parted = everything(), everything()
    first, second, third = whole.uniform(), whole.uniform(), whole.uniform()
    assert torch.equal(parted.uniform(), first)
    assert torch.equal(parted[keep].uniform(), second[torch.tensor([0, 2])])
    rest = parted.uniform()  # the two that were selected have drawn once more than the others
    assert torch.equal(rest[[0, 2]], third[[0, 2]])
    assert torch.equal(rest[[1, 3]], second[[1, 3]])


def test_a_selection_of_a_selection() -> None:
    whole = everything()
    part = everything()[torch.tensor([3, 1, 0])][torch.tensor([True, False, True])]
    assert part.index.tolist() == [3, 0]
    assert torch.equal(part.uniform(), whole.uniform()[[3, 0]])


def test_repeated_rows_take_the_next_draws_of_their_image() -> None:
    whole, repeated = everything(), everything()
    draws = [whole.uniform() for _ in range(3)]
    rows = torch.tensor([1, 0, 1, 1])
    drawn = repeated[rows].uniform()
    for row, (image, turn) in enumerate([(1, 0), (0, 0), (1, 1), (1, 2)]):
        assert torch.equal(drawn[row], draws[turn][image])


def test_nothing_is_drawn_twice() -> None:
    rng = everything()
    repeated = rng[torch.tensor([0, 0, 3, 0, 1])]
    twice, nested = repeated.fold(1), repeated[torch.tensor([0, 1, 1, 2])]
    drawers = [rng, repeated, repeated[torch.tensor([True, True, False, False, True])], nested]
    drawers += [rng.fold(0), twice, rng.spawn(), repeated.spawn(), rng.spawn(), rng.fold(0).fold(0), rng.fold(2)]
    values = [drawer.integers(2**53).flatten() for _ in range(3) for drawer in drawers]
    seen = torch.cat(values)
    assert len(seen.unique()) == len(seen)


def test_a_fold_does_not_depend_on_what_was_drawn() -> None:
    fresh, used = everything(), everything()
    used.normal()
    used[torch.tensor([0, 0])].uniform()
    assert torch.equal(fresh.fold(5).uniform(), used.fold(5).uniform())
    assert not torch.equal(fresh.fold(5).uniform(), fresh.fold(6).uniform())


def test_the_stream_separates() -> None:
    rows = [
        Rng(seed, torch.arange(2), (3,), stream).integers(2**53)
        for seed, stream in itertools.product(range(3), range(3))
    ]
    assert len(torch.stack(rows).unique()) == 3 * 3 * 2 * 3
