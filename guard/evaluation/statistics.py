"""Statistics of shares of images."""

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
    found = bootstrap((shares,), np.mean, n_resamples=_RESAMPLES, batch=50, method="percentile", random_state=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
