"""Low pass: images without their high frequencies."""

import math
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field
from torch import Tensor

from guard import Defense, Rng, dct2, hookimpl, idct2


class DCTLowPass(Defense):
    """Keeps the lowest frequencies of each channel's two-dimensional DCT, sets the others to 0, and clips to [0, 1].

    The rectangle of coefficients at the top left, as in the paper's low-frequency subspace (whose ratio r is
    `dimension`): what an attack in that subspace does, the filter lets through. Differentiable.
    """

    name = "dct-low-pass"
    paper = "Guo, Frank, Weinberger: Low frequency adversarial perturbation, UAI 2019"

    dimension: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of each axis' frequencies that is kept, rounded up to a whole number of them."""

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The filtered images."""
        coefficients = dct2(images)
        height, width = (math.ceil(self.dimension * side) for side in images.shape[2:])
        kept = coefficients.new_zeros(images.shape[2:])
        kept[:height, :width] = 1
        return idct2(coefficients * kept).clamp(0, 1)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [DCTLowPass]
