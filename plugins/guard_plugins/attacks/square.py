"""Square attack: random search with squares, from the logits alone."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from guard import LOSSES, Attack, Cost, Goal, InputError, Rng, ThreatModel, Victim, attempts, hookimpl
from guard_plugins.attacks.squares import SQUARES

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After these of 10,000 changes the squares' share of the pixels is halved."""
BLOCK = 100
"""Changes whose numbers are drawn together."""


class Square(Attack):
    """Random search: change a square anywhere, keep the change where the margin got worse for the model.

    linf: from vertical stripes at + or - epsilon, each channel of a square to + or - epsilon. l2: from tiles of bumps,
    what a square holds to another. The squares shrink by the paper's schedule. The first query is the start, so that
    an image that never falls costs exactly `queries` (the authors' code asks once more).

    As in the paper, and unlike AutoAttack, squares reach the last row and column, and l2 counts mass channel by
    channel; each image draws its own squares. A linf square that would change nothing takes the opposite signs (the
    paper's code draws again, AutoAttack asks in vain). A side is at most the image's shorter one. Towards a target
    the margin counts too (AutoAttack takes the cross-entropy there).
    """

    name = "square"
    paper = "Andriushchenko, Croce, Flammarion, Hein: Square attack, ECCV 2020"
    norms = frozenset({"linf", "l2"})
    access = "logits"

    queries: PositiveInt = 5000
    """Queries for each image and restart, the start included."""
    restarts: PositiveInt = 1
    """Independent runs; each works on the images that the ones before it left."""
    start_size: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the pixels that the first squares cover."""
    rescale: bool = False
    """Whether to fit the schedule, written for 10,000 queries, to `queries`; AutoAttack does not."""

    def cost(self, num_classes: int) -> Cost | None:
        """All queries, and one between restarts."""
        return Cost(self.queries * self.restarts + self.restarts - 1, 0)

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`. Raises InputError where epsilon is inf."""
        if math.isinf(threat.epsilon):
            raise InputError("epsilon is inf: attack 'square' fills the ball. Give a finite epsilon")

        def run(restart: int, rows: Tensor) -> tuple[Tensor, Tensor]:
            return self._run(victim[rows], images[rows], goal[rows], threat, rng[rows].fold(restart))

        return attempts(victim, images, goal, self.restarts, run)

    def _run(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> tuple[Tensor, Tensor]:
        """A point for each image, and the index of those not known to have reached the goal."""
        squares, (channels, height, width) = SQUARES[threat.norm], images.shape[1:]
        search = _Search(victim, images, goal, squares.start(images, threat.epsilon, rng))
        search.settle()  # the budget may be spent before the start is asked about
        if len(search.rows):
            search.ask()
            search.settle()
        for side, count in self._blocks(height, width, squares.fitting):
            numbers = rng[search.rows].uniform(shape=(count, squares.numbers + channels))
            now = squares(side, height, width, threat.epsilon)
            for change in range(count):
                if not len(search.rows):
                    return search.outcome()
                at, before = now.change(search.points, search.images, numbers[:, change])
                better = search.ask()[:, None, None]
                search.points.scatter_(2, at, torch.where(better, search.points.gather(2, at), before))
                left = search.settle()
                numbers = numbers if left is None else numbers[left]
        return search.outcome()

    def _blocks(self, height: int, width: int, fitting: Callable[[int], int]) -> Iterator[tuple[int, int]]:
        """The side of the squares, and for how many changes whose numbers are drawn together."""

        def side(change: int) -> int:
            number = change * 10_000 / self.queries if self.rescale else change
            share = self.start_size / 2 ** bisect_left(HALVED, number)
            return min(fitting(round(math.sqrt(share * height * width))), height, width)

        blocks = groupby(range(self.queries - 1), lambda change: (side(change), change // BLOCK))
        return ((size, len(list(changes))) for (size, _), changes in blocks)


class _Search:
    """The images that are still searched, flat (n, C, H * W), and the best point of each."""

    def __init__(self, victim: Victim, images: Tensor, goal: Goal, start: Tensor) -> None:
        self._victim, self._goal, self._result = victim, goal, start.clone()
        self._open = torch.ones(len(images), dtype=torch.bool, device=images.device)
        self._reached = torch.zeros_like(self._open)
        self._margin = torch.full((len(images),), -float("inf"), dtype=images.dtype, device=images.device)
        self.rows = torch.arange(len(images), device=images.device)
        self.images, self.points = images.flatten(2), start.flatten(2)

    def ask(self) -> Tensor:
        """Ask about the points: whether each is better than all before it, bool (n,)."""
        points = self._shaped()
        logits = self._victim.logits(points)
        margin = LOSSES["margin"](logits, self._goal).to(self._margin)
        better = margin > self._margin
        if self._victim.drop:
            self._reached = self._victim.reached(points, self._goal, logits)
            better |= self._reached
        self._margin = torch.where(better, margin, self._margin)
        return better

    def settle(self) -> Tensor | None:
        """Let those go that have reached their goal or spent their budget; the index of those left where some go."""
        left = ~self._reached
        if self._victim.remaining is not None:
            left &= self._victim.remaining > 0
        keep = left.nonzero().squeeze(1)
        if len(keep) == len(self.rows):
            return None
        self._result[self.rows], self._open[self.rows] = self._shaped(), ~self._reached
        self._victim, self._goal = self._victim[keep], self._goal[keep]
        self._reached, self._margin, self.rows = self._reached[keep], self._margin[keep], self.rows[keep]
        self.images, self.points = self.images[keep], self.points[keep]
        return keep

    def outcome(self) -> tuple[Tensor, Tensor]:
        """The best point of each image, and the index of those not known to have reached the goal."""
        self._result[self.rows] = self._shaped()
        return self._result, self._open.nonzero().squeeze(1)

    def _shaped(self) -> Tensor:
        return self.points.view(len(self.rows), *self._result.shape[1:])


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [Square]
