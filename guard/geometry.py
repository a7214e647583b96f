"""The geometry of the three norms: exact projections on ball and pixel range together, ascents, uniform draws.

Everything works on each image of a batch (N, C, H, W) on its own. With d = point - image, the projection on the ball
alone followed by clipping is not the nearest point of the intersection (in l2 it misses a linear optimum by 3e-3), so
the intersection's own optimality conditions are solved: a coordinate keeps the sign of d, never exceeds the room up to
0 or 1, and in between is scaled (l2) or shortened (l1) by one number per image, found by sorting.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from guard.rng import Rng


def _project_linf(points: Tensor, images: Tensor, epsilon: float) -> Tensor:
    # one fresh tensor: on a CPU each further one of this size costs more in page faults than the arithmetic
    return (points - images).clamp_(-epsilon, epsilon).add_(images).clamp_(0, 1)


def _project_l2(points: Tensor, images: Tensor, epsilon: float) -> Tensor:
    moved = (points - images).flatten(1)
    scale = (epsilon / _length(moved)).clamp(max=1).to(moved.dtype)
    projected = images.flatten(1) + scale * moved
    clipped = ((projected < 0) | (projected > 1)).any(1)
    if clipped.any():
        start, moved = images.flatten(1)[clipped].double(), moved[clipped].double()
        size, room = moved.abs(), _room(moved, start)
        kept = (_scale_with_room(size, room, epsilon) * size).minimum(room)
        projected[clipped] = (start + moved.sign() * kept).to(points.dtype)
    return projected.view_as(points).clamp(0, 1)


def _scale_with_room(size: Tensor, room: Tensor, epsilon: float) -> Tensor:
    """The largest s <= 1 with |min(s * size, room)|_2 <= epsilon, shape (N, 1).

    Coordinate i stops growing at s = room_i / size_i. Between two such stops the squared length is R + s^2 A, with R
    the squared rooms of those that stopped and A the squared sizes of those that did not.
    """
    stop, order = (room / size.clamp(min=1e-300)).clamp(max=1).sort(dim=1)
    room, size = room.gather(1, order), size.gather(1, order)
    none = torch.zeros_like(room[:, :1])
    stopped = torch.cat([none, room.square().cumsum(1)], 1)  # before the first stop, and after each
    growing = torch.cat([size.square().flip(1).cumsum(1).flip(1), none], 1)
    passed = (stopped[:, 1:] + stop.square() * growing[:, 1:] <= epsilon**2).sum(1, keepdim=True)
    rest = (epsilon**2 - stopped.gather(1, passed)).clamp(min=0)
    slope = growing.gather(1, passed)
    return torch.where(slope > 0, rest / slope, 1).sqrt().clamp(max=1)


def _project_l1(points: Tensor, images: Tensor, epsilon: float) -> Tensor:
    start, moved = images.flatten(1), (points - images).flatten(1)
    room = _room(moved, start)
    kept = moved.abs().minimum(room)
    long = kept.sum(1, dtype=torch.float64) > epsilon
    if long.any():
        kept[long] = _shortened(moved[long].abs().double(), room[long].double(), epsilon).to(kept.dtype)
    return (start + moved.sign() * kept).view_as(points).clamp(0, 1)


def _shortened(size: Tensor, room: Tensor, epsilon: float) -> Tensor:
    """clip(size - t, 0, room) with the t that makes it sum to epsilon, shape (N, D).

    The sum falls piecewise linearly in t: coordinate i starts to shrink at t = size_i - room_i and is gone at size_i.
    No room exceeds 1, so that a gap of more than 1 between neighbouring sizes may be closed to 1 without changing the
    result; far points then lose no digits.
    """
    ordered, order = size.sort(dim=1)
    gaps = ordered.diff(dim=1, prepend=torch.zeros_like(ordered[:, :1])).clamp(max=1)
    size = torch.zeros_like(size).scatter(1, order, gaps.cumsum(1))
    starts, ends = size - room, size
    bends, order = torch.cat([starts, ends], 1).sort(dim=1)
    change = torch.cat([-torch.ones_like(starts), torch.ones_like(ends)], 1).gather(1, order)
    slope = change.cumsum(1)  # of the sum, just after each bend
    fall = torch.cat([torch.zeros_like(slope[:, :1]), (slope[:, :-1] * bends.diff(dim=1))], 1).cumsum(1)
    total = room.sum(1, keepdim=True) + fall  # the sum at each bend
    last = ((total >= epsilon).sum(1, keepdim=True) - 1).clamp(min=0)
    excess = total.gather(1, last) - epsilon
    shift = bends.gather(1, last) - excess / slope.gather(1, last).clamp(max=-1)
    return (size - shift).clamp(min=0).minimum(room)


def _ascend_linf(gradient: Tensor, size: Tensor, point: Tensor) -> Tensor:
    return gradient.sign().mul_(size.view(-1, 1, 1, 1))


def _ascend_l2(gradient: Tensor, size: Tensor, point: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    tiny = torch.finfo(flat.dtype).tiny
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=tiny)  # so that no square overflows or vanishes
    return (size * flat / _length(flat).to(flat.dtype).clamp(min=tiny)).view_as(gradient)


def _ascend_l1(gradient: Tensor, size: Tensor, point: Tensor) -> Tensor:
    """Fill by falling gradient. What is filled to the brim is pushed far on, the further the larger its gradient: the
    projection, which shortens all coordinates alike, then takes the budget back from the others first and from the
    smallest gradient next, so that the optimum of a linear function is a fixed point."""
    flat = gradient.flatten(1)
    room = _room(flat, point.flatten(1))
    order = flat.abs().argsort(dim=1, descending=True, stable=True)
    wanted = room.gather(1, order)
    before = wanted.cumsum(1) - wanted
    filled = (size - before).clamp(min=0).minimum(wanted)
    beyond = torch.arange(2 * flat.shape[1], 0, -2, dtype=flat.dtype, device=flat.device)  # more than 1 apart
    pushed = torch.where(before + wanted <= size, filled + beyond, filled)
    step = torch.zeros_like(flat).scatter(1, order, pushed)
    return (flat.sign() * step).view_as(gradient)


def _room(direction: Tensor, start: Tensor) -> Tensor:
    """How far each coordinate of `start` may go along `direction` inside [0, 1]."""
    return torch.where(direction > 0, 1 - start, start).clamp(min=0)


def _length(flat: Tensor) -> Tensor:
    """Euclidean length of each row, float64, shape (N, 1), never 0."""
    return torch.linalg.vector_norm(flat, dim=1, keepdim=True, dtype=torch.float64).clamp(min=1e-300)


def _draw_linf(rng: Rng) -> Tensor:
    return rng.uniform(-1, 1)


def _draw_l2(rng: Rng) -> Tensor:
    direction = rng.normal()
    radius = rng.uniform(shape=()) ** (1 / direction[0].numel())
    return direction * (radius / _length(direction.flatten(1)).squeeze(1)).float().view(-1, 1, 1, 1)


def _draw_l1(rng: Rng) -> Tensor:
    exponential = -(1 - rng.uniform()).log()
    slack = -(1 - rng.uniform(shape=())).log()
    total = exponential.flatten(1).sum(1) + slack
    return rng.signs() * exponential / total.view(-1, 1, 1, 1)


PROJECTIONS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "linf": _project_linf,
    "l2": _project_l2,
    "l1": _project_l1,
}
ASCENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linf": _ascend_linf,
    "l2": _ascend_l2,
    "l1": _ascend_l1,
}
UNIT_BALL: dict[str, Callable[[Rng], Tensor]] = {"linf": _draw_linf, "l2": _draw_l2, "l1": _draw_l1}
