"""Fast AutoAttack: nearly AutoAttack's robust accuracy for a small part of its cost."""

import math
from collections.abc import Iterable, Iterator

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from guard import Attack, Cost, Goal, Memory, Rng, ThreatModel, Victim, hookimpl
from guard_plugins.attacks.apgd import APGD
from guard_plugins.attacks.fast_pgd import FastPGD
from guard_plugins.attacks.square import Square

LOOKS = 3
"""Runs from corners that every image gets; what they end at tells how far its margin varies."""
DEVIATIONS = 6
"""An image might still fall while its mean margin is at most so many standard deviations above zero."""
GLANCE = 100
"""Queries of the Square that every image gets, to see whether gradients miss something."""


class Corners(FastPGD):
    """Fast PGD from corners of the ball: random signs that are constant on tiles of 4 x 4 pixels, or on columns.

    Neighbouring pixels that start on the same side are a start that noise never makes; on MNIST, runs from there find
    much of what otherwise Square alone does.
    """

    columns: bool = False

    def start(
        self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
    ) -> tuple[Tensor, Memory]:
        """Signs, as far as the ball reaches."""
        channels, height, width = images.shape[1:]
        down, across = (height, 1) if self.columns else (4, 4)
        signs = rng.signs((channels, -(-height // down), -(-width // across))).to(images.dtype)
        signs = signs.repeat_interleave(down, 2).repeat_interleave(across, 3)[:, :, :height, :width]
        return threat.project(images + threat.epsilon * signs, images), {}


class FastAutoAttack(Attack):
    """An estimate of AutoAttack: gradients first, then most of the budget where an image might still fall.

    Every image gets fast PGD, and those that stand 3 runs of it from corners of the ball and 100 queries of Square. The
    margins that an image's own runs end at decide about it: if their mean lies more than 6 standard deviations above
    zero, and Square did not get below the lowest of them, it is taken for robust. The others get APGD towards the 9
    likeliest wrong classes (20 steps each), more runs from corners for as long as the rule lets them, and a longer
    Square. Those that stand after all of that are left undecided; the report says how many.

    So its robust accuracy is an estimate, from above, of AutoAttack's. It is for linf, which it was made on: in l2 and
    l1 the runs of one image end too much alike for the rule, and images that it took for robust fell by the dozen.
    There is no paper.
    """

    name = "fast-autoattack"
    norms = frozenset({"linf"})
    estimate = True

    runs: NonNegativeInt = 40
    """Further runs from corners for an image that might still fall."""
    queries: PositiveInt = 2000
    """Queries of the last Square."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`."""
        hunt = _Hunt(victim, images, goal, threat, rng)
        for number, (name, attack, doubtful) in enumerate(self._plan()):
            hunt.run(number, name, attack, hunt.doubtful() if doubtful else hunt.standing())
        victim.leave_undecided(torch.cat([hunt.doubtful(), hunt.cut_short()]))
        return hunt.points

    def cost(self, num_classes: int) -> Cost:
        """All of it, and a forward after each run."""
        costs = [attack.cost(num_classes) for _, attack, _ in self._plan()]
        known = [cost for cost in costs if cost is not None]
        return Cost(sum(cost.forwards + 1 for cost in known), sum(cost.backwards for cost in known))

    def _plan(self) -> Iterator[tuple[str, Attack, bool]]:
        """Each run's name, its attack, and whether it is for doubtful images only."""
        yield "fast-pgd", FastPGD(), False
        for run in range(LOOKS):
            yield "corners", Corners(columns=run % 2 == 1), False
        yield "square", Square(queries=GLANCE), False
        yield "apgd-t", APGD(targets=9, steps=20), True
        for run in range(self.runs):
            yield "corners", Corners(columns=run % 2 == 0), True
        yield "square", Square(queries=self.queries), True


class _Hunt:
    """The images of a call, the best point of each, and what its runs ended at."""

    def __init__(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> None:
        self._victim, self._images, self._goal, self._threat, self._rng = victim, images, goal, threat, rng
        self.points = images.clone()
        self._open = torch.ones(len(images), dtype=torch.bool, device=images.device)
        self._lowest = torch.full((len(images),), math.inf, dtype=torch.float64, device=images.device)
        self._ends: list[Tensor] = []
        """Of each run along the gradient the margin it ended at, float64 (N,); nan where it was not made."""
        self._glance = torch.full_like(self._lowest, math.inf)

    def standing(self) -> Tensor:
        """The index of the images that have not fallen and may be asked about."""
        remaining = self._victim.remaining
        return (self._open if remaining is None else self._open & (remaining > 0)).nonzero().squeeze(1)

    def cut_short(self) -> Tensor:
        """The index of the images that have not fallen, and about which nothing more may be asked."""
        remaining = self._victim.remaining
        spent = torch.zeros_like(self._open) if remaining is None else remaining <= 0
        return (self._open & spent).nonzero().squeeze(1)

    def doubtful(self) -> Tensor:
        """The index of the images that stand and might still fall."""
        rows = self.standing()
        if not len(rows):
            return rows
        ends = torch.stack(self._ends)[:, rows]
        count = ends.isfinite().sum(0)
        mean = ends.nanmean(0)
        deviation = ((ends - mean).square().nansum(0) / (count - 1).clamp(min=1)).sqrt()
        missed = self._glance[rows] < 0.99 * ends.nan_to_num(math.inf).amin(0)  # by more than rounding
        return rows[(mean <= DEVIATIONS * deviation) | missed]

    def run(self, number: int, name: str, attack: Attack, rows: Tensor) -> None:
        """Let an attack try on the images in `rows`."""
        if not len(rows):
            return
        victim, goal = self._victim[rows], self._goal[rows]
        part = victim.part(name, access=attack.access, bf16=attack.bf16)
        points = attack.perturb(part, self._images[rows], goal, self._threat, self._rng[rows].fold(number))
        if victim.remaining is not None:  # what the last query led to is for the scoring to judge
            spent, able = ((victim.remaining > 0) == flag for flag in (False, True))
            self.points[rows[spent]] = points[spent]
            rows, points, victim, goal = rows[able], points[able], victim[able], goal[able]
            if not len(rows):
                return
        logits = victim.logits(points)
        margin = goal.margin(logits).double()
        better = margin < self._lowest[rows]
        self._lowest[rows] = torch.where(better, margin, self._lowest[rows])
        self.points[rows[better]] = points[better]
        if isinstance(attack, FastPGD):
            self._ends.append(torch.full_like(self._lowest, math.nan).index_copy(0, rows, margin))
        elif isinstance(attack, Square):
            self._glance[rows] = self._glance[rows].minimum(margin)
        if self._victim.drop:
            fallen = rows[victim.reached(points, goal, logits)]
            self._victim.credit(name, fallen)
            self._open[fallen] = False


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [FastAutoAttack]
