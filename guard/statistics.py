"""Statistics of shares of images: intervals, and whether two of them differ by more than chance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000


def interval(shares: NDArray[Any]) -> tuple[float, float]:
    """The 95 % interval of a mean over images: Wilson's of flags, a bootstrap over the images of shares of draws.

    `shares`: bool, or float in [0, 1], (N,); where each of the latter is 0 or 1 they are flags, too.
    """
    from scipy.stats import bootstrap

    flags = shares > 0.5
    if (flags == shares).all():
        return wilson(int(flags.sum()), len(flags))
    if len(shares) < 2:  # which says nothing of others
        return 0.0, 1.0
    found = bootstrap((shares,), np.mean, n_resamples=_RESAMPLES, batch=50, method="percentile", random_state=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def median_interval(values: NDArray[Any]) -> tuple[float, float]:
    """The 95 % interval, at least, of a median, whatever the distribution: two of the values (N,) in their order.

    How many of them lie below the median is binomial (Thompson 1936). Fewer than 6 values know no such interval, and
    give the smallest and the largest.
    """
    from scipy.stats import binom

    ordered, rank = np.sort(values), int(binom.ppf(0.025, len(values), 0.5))
    low = max(rank - 1, 0)
    return float(ordered[low]), float(ordered[len(ordered) - 1 - low])


def pairs_interval(values: NDArray[Any]) -> tuple[float, float]:
    """The 95 % interval of a mean over all pairs of images, from each image's mean over its pairs (N,), N at least 2.

    An image is in the pairs of all others, so that it is twice as wide as that of as many numbers (Hoeffding 1948).
    """
    reach = 1.96 * 2 * float(values.std(ddof=1)) / len(values) ** 0.5
    return float(values.mean()) - reach, float(values.mean()) + reach


def pairs_test(differences: NDArray[Any]) -> float:
    """The p-value, two-sided, of two means over all pairs of the same images being equal; see `pairs_interval`.

    `differences` (N,): of each image's means over its pairs. Normal, for many images.
    """
    from scipy.stats import norm

    deviation = 2 * float(differences.std(ddof=1)) / len(differences) ** 0.5
    if deviation == 0:
        return 0.0 if differences.any() else 1.0
    return 2 * float(norm.sf(abs(float(differences.mean())) / deviation))


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(one: int, other: int) -> float:
    """The p-value, two-sided and exact, of two shares of the same images being equal (McNemar 1947).

    `one`, `other`: of how many images only the one, only the other, holds. It is the probability of a split at least as
    uneven, were both equally likely.
    """
    from scipy.stats import binomtest

    return float(binomtest(one, one + other).pvalue) if one + other else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, in their order, corrected so that all are below a level together (Holm 1979).

    The k-th smallest of n counts n + 1 - k times; none ends below a smaller one, and none above 1.
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected
