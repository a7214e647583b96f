"""The nearest point of a hyperplane inside [0, 1], in linf, l2 and l1, for every row of a batch.

Wanted is the shortest displacement d with <normal, d> = gain. Every coordinate moves along the normal's sign and has
some room there before it leaves [0, 1]. In linf all move alike, in l2 in proportion to the normal, each as far as its
room goes, and in both the gain is reached at the level where

    sum_i rate_i min(level, stop_i) = gain
    linf: rate = |normal|, stop = room    l2: rate = normal^2, stop = room / |normal|

which is concave and piecewise linear in the level, so that Newton's method climbs to its root, exactly, in a handful of
steps and without sorting. In l1 the coordinates with the largest normal go first, each as far as its room goes.
"""

import torch
from torch import Tensor

from guard import Norm


def onto_hyperplane(points: Tensor, normal: Tensor, gain: Tensor, norm: Norm) -> Tensor:
    """The shortest displacement, in `norm`, of each point to where it has gained `gain` along the normal.

    `points` (k, N, D) in [0, 1], `normal` (N, D), `gain` (k, N) of either sign; the displacements are (k, N, D). Where
    the hyperplane does not meet [0, 1] a displacement ends at the corner nearest to it; where the normal is 0 it is 0.
    """
    tiny = torch.finfo(normal.dtype).tiny
    size = normal.abs()
    unit = size.amax(1, keepdim=True).clamp_(min=tiny)  # so that no square vanishes
    size /= unit
    gain = gain[:, :, None] / unit
    sign = normal.sign() * gain.sign()
    gain = gain.abs()
    room = torch.addcmul(sign.clamp(min=0), sign, points, value=-1)
    if norm == "l1":
        moved = _largest_first(size, room, gain)
    elif norm == "linf":
        moved = torch.minimum(room, _levels(size, room, gain), out=room)
    else:
        stop = room.div_(size.clamp(min=tiny))
        moved = torch.minimum(stop, _levels(size.square(), stop, gain), out=stop).mul_(size)
    return moved.mul_(sign)


def _levels(rate: Tensor, stop: Tensor, gain: Tensor) -> Tensor:
    """The least level with sum_i rate_i min(level, stop_i) = gain, or one beyond all stops; (k, N, 1)."""
    whole = rate.sum(1, keepdim=True)
    start = gain / whole.clamp(min=torch.finfo(rate.dtype).tiny)
    return torch.stack([_climb(rate, whole, *block) for block in zip(stop, gain, start, strict=True)])


def _climb(rate: Tensor, whole: Tensor, stop: Tensor, gain: Tensor, level: Tensor) -> Tensor:
    """Raise the levels (N, 1) to where they reach the gain.

    A level rises to where the line through the coordinates of its row that have not stopped meets the gain. A row whose
    level no longer rises is done, however many steps the others need.
    """
    gone = torch.empty_like(stop)
    while True:
        torch.le(stop, level, out=gone)
        slope = whole - gone.mul_(rate).sum(1, keepdim=True)
        left = gain - gone.mul_(stop).sum(1, keepdim=True)
        higher = torch.maximum(level, left / slope.clamp(min=torch.finfo(rate.dtype).tiny))
        rows = (higher > level).squeeze(1).nonzero().squeeze(1)
        level = higher
        if not len(rows):
            return level
        if len(rows) <= len(level) // 4:
            level[rows] = _climb(rate[rows], whole[rows], stop[rows], gain[rows], level[rows])
            return level


def _largest_first(size: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    """How far each coordinate moves where the largest sizes go first, each as far as its room goes; (k, N, D)."""
    order = size.argsort(dim=1, descending=True, stable=True).expand_as(room)
    worth = (size * room).gather(2, order)
    before = worth.cumsum(2).sub_(worth)
    gained = torch.minimum(before.neg_().add_(gain).clamp_(min=0), worth)
    moved = torch.zeros_like(room).scatter_(2, order, gained)
    return torch.minimum(moved.div_(size.clamp(min=torch.finfo(size.dtype).tiny)), room)
