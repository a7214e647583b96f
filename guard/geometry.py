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
    return torch.min(torch.max(points, images - epsilon), images + epsilon).clamp(0, 1)


def _project_l2(points: Tensor, images: Tensor, epsilon: float) -> Tensor:
    moved = (points - images).flatten(1)
    scale = (epsilon / _length(moved)).clamp(max=1)
    projected = images.flatten(1) + scale * moved
    clipped = ((projected < 0) | (projected > 1)).any(1)
    if clipped.any():
        start, moved = images.flatten(1)[clipped].double(), moved[clipped].double()
        room = _room(moved, start)
        scale = _scale_with_room(moved.abs(), room, epsilon)
        projected[clipped] = (start + moved.sign() * (scale * moved.abs()).minimum(room)).to(points.dtype)
    return projected.view_as(points).clamp(0, 1)


def _scale_with_room(size: Tensor, room: Tensor, epsilon: float) -> Tensor:
    """The largest s <= 1 with |min(s * size, room)|_2 <= epsilon, shape (N, 1).

    Coordinate i stops growing at s = room_i / size_i. Between two such stops the squared length is R + s^2 A, with R
    the rooms of those that stopped and A the sizes of those that did not.
    """
    stop, order = (room / size.clamp(min=1e-300)).sort(dim=1)
    room, size = room.gather(1, order), size.gather(1, order)
    stopped = room.square().cumsum(1)
    growing = size.square().flip(1).cumsum(1).flip(1) - size.square()  # those after i
    passed = (stopped + stop.square() * growing <= epsilon**2).sum(1, keepdim=True)
    zero = torch.zeros_like(stopped[:, :1])
    rest = epsilon**2 - torch.cat([zero, stopped], 1).gather(1, passed)
    slope = torch.cat([size.square().sum(1, keepdim=True), growing], 1).gather(1, passed)
    return (rest.clamp(min=0) / slope.clamp(min=1e-300)).sqrt().clamp(max=1)


def _project_l1(points: Tensor, images: Tensor, epsilon: float) -> Tensor:
    start, moved = images.flatten(1), (points - images).flatten(1)
    room = _room(moved, start)
    kept = moved.abs().minimum(room)
    long = kept.sum(1) > epsilon
    if long.any():
        kept[long] = _shortened(moved[long].abs().double(), room[long].double(), epsilon).to(kept.dtype)
    return (start + moved.sign() * kept).view_as(points).clamp(0, 1)


def _shortened(size: Tensor, room: Tensor, epsilon: float) -> Tensor:
    """clip(size - t, 0, room) with the t that makes it sum to epsilon, shape (N, D).

    The sum falls piecewise linearly in t: coordinate i starts to shrink at t = size_i - room_i and is gone at size_i.
    """
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
    return gradient.sign() * size.view(-1, 1, 1, 1)


def _ascend_l2(gradient: Tensor, size: Tensor, point: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)  # so that squares neither overflow nor vanish
    return (size * flat / _length(flat)).view_as(gradient)


def _ascend_l1(gradient: Tensor, size: Tensor, point: Tensor) -> Tensor:
    """Fill by falling gradient. What is filled to the brim is pushed on by `size`: the projection, which shortens all
    coordinates alike, then leaves it full, so that the optimum of a linear function is a fixed point."""
    flat = gradient.flatten(1)
    room = _room(flat, point.flatten(1))
    order = flat.abs().argsort(dim=1, descending=True, stable=True)
    wanted = room.gather(1, order)
    before = wanted.cumsum(1) - wanted
    filled = (size - before).clamp(min=0).minimum(wanted)
    pushed = torch.where(before + wanted <= size, filled + size, filled)
    step = torch.zeros_like(flat).scatter(1, order, pushed)
    return (flat.sign() * step).view_as(gradient)


def _room(direction: Tensor, start: Tensor) -> Tensor:
    """How far each coordinate of `start` may go along `direction` inside [0, 1]."""
    return torch.where(direction > 0, 1 - start, start).clamp(min=0)


def _length(flat: Tensor) -> Tensor:
    """Euclidean length of each row, shape (N, 1), never 0."""
    return flat.norm(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)


def _draw_linf(rng: Rng) -> Tensor:
    return rng.uniform(-1, 1)


def _draw_l2(rng: Rng) -> Tensor:
    direction = rng.normal()
    radius = rng.uniform(shape=()) ** (1 / direction[0].numel())
    return direction * (radius / _length(direction.flatten(1)).squeeze(1)).view(-1, 1, 1, 1)


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
