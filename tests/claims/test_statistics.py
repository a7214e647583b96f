"""Tests of several differences at once."""

import math

import numpy as np
import pytest

from guard.statistics import holm, interval, mcnemar


@pytest.mark.parametrize(("one", "other"), [(0, 3), (5, 1), (7, 7), (40, 12), (1, 0)])
def test_mcnemar_is_its_binomial_sum(one: int, other: int) -> None:
    n = one + other
    tail = sum(math.comb(n, k) for k in range(min(one, other) + 1)) / 2**n
    assert mcnemar(one, other) == pytest.approx(min(1, 2 * tail), rel=1e-12)
    assert mcnemar(one, other) == mcnemar(other, one)


def test_where_nothing_differs_nothing_is_significant() -> None:
    assert mcnemar(0, 0) == 1


def test_holm_by_hand() -> None:
    # sorted: 0.01 x 4, 0.011 x 3 (not below 0.04), 0.03 x 2, 0.7 x 1
    assert holm([0.03, 0.01, 0.7, 0.011]) == pytest.approx([0.06, 0.04, 0.7, 0.04])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])  # 0.4 x 2, and no smaller after it
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_flags_have_wilsons_interval_and_shares_a_narrower_one() -> None:
    flags = np.array([True] * 60 + [False] * 40)
    assert interval(flags) == interval(flags.astype(float))
    shares = np.full(100, 0.6) + np.linspace(-0.1, 0.1, 100)
    low, high = interval(shares)
    assert interval(flags)[0] < low < 0.6 < high < interval(flags)[1]
