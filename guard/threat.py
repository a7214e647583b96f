"""ThreatModel: a norm and a radius, and the geometry that goes with them."""

import math
import re
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BeforeValidator, WithJsonSchema, model_validator
from torch import Tensor

from guard import geometry
from guard.component import Parameters
from guard.rng import Rng

Norm = Literal["linf", "l2", "l1"]
NORMS: frozenset[Norm] = frozenset({"linf", "l2", "l1"})

_NUMBER = r"\s*(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)\s*"
_FRACTION = re.compile(f"{_NUMBER}(?:/{_NUMBER})?")


def parse_amount(value: Any) -> Any:
    """Read an amount as papers write it: a number, "8/255", "0.3" or "inf"."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number; write 8/255 or 0.3")
    if not isinstance(value, str):
        return value
    if value.strip() == "inf":
        return math.inf
    match = _FRACTION.fullmatch(value)
    if match is None:
        raise ValueError(f"'{value}' is no number; write 8/255 or 0.3")
    if match[2] is not None and float(match[2]) == 0:
        raise ValueError(f"'{value}' divides by zero; write 8/255 or 0.3")
    return float(match[1]) / float(match[2] or 1)


def _positive(value: float) -> float:
    if not value > 0:  # NaN too
        raise ValueError(f"{value:g} is not above 0; write 8/255 or 0.3")
    return value


def _bounded(value: float) -> float:
    if math.isinf(value):
        raise ValueError("inf is not finite; write 8/255 or 0.3")
    return value


_SCHEMA = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}
Radius = Annotated[float, BeforeValidator(parse_amount), AfterValidator(_positive), WithJsonSchema(_SCHEMA)]
"""A float above 0, inf included, that a config may also write as a fraction: "8/255"."""
Amount = Annotated[Radius, AfterValidator(_bounded)]
"""A finite float above 0 that a config may also write as a fraction: "8/255"."""


class ThreatModel(Parameters):
    """What the adversary may do to an image: move it by at most `epsilon` in `norm`, inside [0, 1].

    All methods take images of shape (N, C, H, W) and treat each image on its own.
    """

    norm: Norm
    """linf (largest change of a value), l2 (Euclidean length) or l1 (sum of changes)."""
    epsilon: Radius
    """Radius of the ball, in units of the [0, 1] range: 8/255, 0.3; inf (no bound) for l2 and l1."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        epsilon = self.epsilon
        if self.norm == "linf" and epsilon > 1:
            hint = f"did you mean {epsilon:g}/255?" if epsilon <= 255 else "images live in [0, 1]"
            raise ValueError(f"epsilon is {epsilon:g}, more than the whole pixel range; {hint}")
        return self

    def __str__(self) -> str:
        return f"{self.norm} {amount(self.epsilon)}"

    def project(self, points: Tensor, images: Tensor) -> Tensor:
        """The point nearest to each of `points` (in the Euclidean sense) inside the ball and inside [0, 1]."""
        if math.isinf(self.epsilon):
            return points.clamp(0, 1)
        return geometry.PROJECTIONS[self.norm](points, images, self.epsilon)

    def distance(self, points: Tensor, images: Tensor) -> Tensor:
        """How far each point lies from its image, float64, shape (N,)."""
        moved = (points.double() - images.double()).flatten(1)
        order = {"linf": math.inf, "l2": 2, "l1": 1}[self.norm]
        return torch.linalg.vector_norm(moved, order, dim=1)

    def contains(self, points: Tensor, images: Tensor) -> Tensor:
        """Whether each point lies in the ball, up to what a correct float32 projection leaves; bool (N,)."""
        allowed = self.epsilon + 1e-6 if self.norm == "linf" else self.epsilon * (1 + 1e-5)
        return self.distance(points, images) <= allowed

    def random_start(self, images: Tensor, rng: Rng) -> Tensor:
        """A uniform draw from the ball, projected; anywhere in [0, 1] where there is no bound."""
        if math.isinf(self.epsilon):
            return rng.uniform().to(images.dtype)
        return self.project(images + self.epsilon * geometry.UNIT_BALL[self.norm](rng).to(images.dtype), images)

    def steepest_ascent(self, gradient: Tensor, size: float | Tensor, point: Tensor) -> Tensor:
        """The displacement of length `size` (a number, or one per image, finite) that gains most along `gradient`.

        For l1 it fills the coordinates with the largest gradient, each up to the room it has left at `point`, and
        pushes those that it fills far beyond the range, which the projection takes back.
        A zero gradient gives a zero displacement. The result still has to be projected.
        """
        if not isinstance(size, Tensor):
            size = torch.full((len(gradient),), size, dtype=gradient.dtype, device=gradient.device)
        return geometry.ASCENTS[self.norm](gradient, size.view(-1, 1), point)


def amount(value: float) -> str:
    """Write an epsilon as papers do: 8/255 where it is a multiple of 1/255 (halves too), else the number."""
    if math.isinf(value):
        return "inf"
    grid = value * 255
    for digits in (0, 1):
        if grid >= 0.5 and abs(grid - round(grid, digits)) < 1e-6 and not math.isclose(value, round(value, 2)):
            return f"{round(grid, digits):g}/255"
    return f"{value:.4g}"
