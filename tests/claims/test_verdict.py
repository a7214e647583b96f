"""What flags of images say about a sentence."""

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.claims.verdict import Comparison, Figure, Verdict, compared, corrected, ruled

Flags = NDArray[np.bool_]


def flags(stand: int, of: int = 100) -> Flags:
    """The first `stand` of the images stand."""
    return np.arange(of) < stand


def pair(low: int, high: int, *, line: int = 0, seed: int = 0, by: float | None = None) -> Comparison:
    return compared(line, seed, Figure(name="a"), Figure(name="b"), by, (flags(low), flags(high)))


def ruling(*comparisons: Comparison) -> tuple[str, str]:
    return ruled(corrected(comparisons))


def test_figures_difference_and_test_of_flags() -> None:
    item = pair(50, 60)
    assert (item.lower.value, item.higher.value) == (0.5, 0.6)
    assert item.difference == pytest.approx(0.1)
    assert item.sign == 1
    assert item.p_value == pytest.approx(2 * 0.5**10)  # ten images, all the same way
    assert item.lower.interval is not None
    assert item.lower.interval[0] < 0.5 < item.lower.interval[1]


def test_the_test_is_paired() -> None:
    low, high = flags(50), np.roll(flags(56), 50)  # 6 points apart, as pair(50, 56) is
    item = compared(0, 0, Figure(name="a"), Figure(name="b"), None, (low, high))
    paired = pair(50, 56)
    assert item.difference == paired.difference
    assert item.p_value is not None
    assert item.p_value > 0.5
    assert paired.p_value == pytest.approx(2 * 0.5**6)


def test_supported_in_every_seed() -> None:
    assert ruling(*(pair(50, 60, seed=seed) for seed in range(3))) == ("supported", "")


def test_contradicted_where_every_seed_is_reversed() -> None:
    holding = [pair(50, 70, line=0, seed=seed) for seed in range(3)]
    reversed_ = [pair(60, 50, line=1, seed=seed) for seed in range(3)]
    assert ruling(*holding, *reversed_) == ("contradicted", "")


def test_undecided_where_seeds_disagree() -> None:
    found = ruling(pair(50, 70), pair(50, 70, seed=1), pair(70, 50, seed=2))
    assert found == ("undecided", "line 1 is significantly reversed in seed 2")


def test_undecided_where_one_seed_shows_nothing() -> None:
    found = ruling(pair(50, 70), pair(50, 52, seed=7), pair(50, 50, seed=8))
    assert found == ("undecided", "line 1 shows no difference beyond chance in seeds 7, 8")
    assert ruling(pair(70, 50), pair(50, 50, seed=7))[0] == "undecided"


def test_holms_correction_is_over_lines_and_seeds() -> None:
    # 7 images one way: p = 1/64 = 0.0156; six such rows: 0.094; alone it is below 0.05
    one = pair(50, 57)
    assert ruling(one) == ("supported", "")
    six = [pair(50, 57, line=line, seed=seed) for line in range(2) for seed in range(3)]
    assert ruling(*six)[0] == "undecided"
    assert [item.p_corrected for item in corrected(six)] == pytest.approx([6 / 64] * 6)
    three = [pair(50, 57, seed=seed) for seed in range(3)]
    assert ruling(*three) == ("supported", "")  # 3/64


def test_a_margin_is_part_of_a_line() -> None:
    assert ruling(pair(50, 60, by=0.1)) == ("supported", "")
    assert ruling(pair(50, 60, by=0.11)) == ("undecided", "line 1 differs by less than asked in seed 0")
    assert ruling(pair(60, 50, by=0.3)) == ("contradicted", "")


def test_a_marked_figure_leaves_it_undecided() -> None:
    bad = Comparison(line=1, seed=0, lower=Figure(name="x", mark="INVALID: NaN"), higher=Figure(name="y"))
    rows = corrected([pair(50, 60), bad])
    assert [row.p_corrected for row in rows] == [pytest.approx(2 * 0.5**10), None]
    assert ruled(rows) == ("undecided", "x is INVALID: NaN")
    suspect = pair(60, 50).model_copy(update={"higher": Figure(name="y", mark="SUSPECT: at chance")})
    assert ruling(suspect) == ("undecided", "y is SUSPECT: at chance")


def test_shares_of_draws_count_above_one_half() -> None:
    low, high = np.full(100, 0.4), np.where(np.arange(100) < 20, 0.7, 0.45)
    item = compared(0, 0, Figure(name="a"), Figure(name="b"), None, (low, high))
    assert item.p_value == pytest.approx(2 * 0.5**20)
    assert item.difference == pytest.approx(0.1)
    ones = np.where(np.arange(100) < 20, 0.6, 0.0)  # a majority on 20 images, and less on the whole
    split = compared(0, 0, Figure(name="a"), Figure(name="b"), None, (low, ones))
    assert (split.sign, split.difference) == (0, pytest.approx(-0.28))
    assert ruling(split) == ("undecided", "line 1 has draws and majorities disagree in seed 0")


def test_the_line_that_is_printed() -> None:
    shared = {"claim": "X.", "images": 1, "comparisons": (), "config": {}, "versions": {}}
    assert str(Verdict(verdict="supported", **shared)) == "supported: X."
    assert str(Verdict(verdict="undecided", why="line 1", **shared)) == "undecided: X. (line 1)"
