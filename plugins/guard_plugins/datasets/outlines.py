"""Outlines: geometric shapes by their signed distance, all of one area."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

REACH = 1.56
"""No shape's border is farther from its center."""

_STAR = math.pi / 5, 0.45
"""Half the angle of an arm, and the inner radius over the outer one."""


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _square(x: Tensor, y: Tensor) -> Tensor:
    side = math.sqrt(math.pi) / 2
    return _box(x, y, side, side)


def _bar(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, math.sqrt(2.5 * math.pi) / 2, math.sqrt(math.pi / 2.5) / 2)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    length = math.sqrt(math.pi * 9 / 20)
    return torch.minimum(_box(x, y, length, length / 3), _box(x, y, length / 3, length))


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    slope = math.sqrt(3) / 2
    return torch.maximum(slope * x.abs() + y / 2, -y) - math.sqrt(math.pi / math.sqrt(27))


def _star(x: Tensor, y: Tensor) -> Tensor:
    half, ratio = _STAR
    radius = math.sqrt(math.pi / (5 * ratio * math.sin(half)))
    angle = (torch.atan2(y, x) % (2 * half) - half).abs() - half  # of an arm's tip 0, between two arms -half
    distance = torch.hypot(x, y)
    along, across = ratio * math.cos(half) - 1, ratio * math.sin(half)  # an arm's edge, from its tip
    outside = across * (distance * angle.cos() - radius) - along * distance * angle.sin().abs()
    return outside / math.hypot(along, across)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 1).abs() - 0.25


def _half_disc(x: Tensor, y: Tensor) -> Tensor:
    radius = math.sqrt(2)
    y = y + 4 * radius / (3 * math.pi)  # its center of mass in the middle
    return torch.maximum(torch.hypot(x, y) - radius, -y)


OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "ring": _ring,
    "bar": _bar,
    "half disc": _half_disc,
}
"""Of (x, y) around the center of mass, how far outside the shape a point is, negative inside; each has the area of the
unit circle. Within half a pixel of a border that is its distance, elsewhere at most that."""
