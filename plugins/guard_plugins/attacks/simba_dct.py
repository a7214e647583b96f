"""SimBA-DCT: one low frequency after another, from the probabilities alone."""

from collections.abc import Iterable

import torch
from pydantic import PositiveInt
from torch import Tensor

from guard import LOSSES, Amount, Attack, Cost, Goal, Rng, ThreatModel, Victim, hookimpl, idct2
from guard_plugins.attacks.bands import side_of


class SimBADCT(Attack):
    """Steps along single basis vectors of the lowest frequencies, in random order: back, else forth, else the next.

    A step is kept where it lowers the label's probability (towards a target: raises the target's), which is taken in
    float64, as float32 rounds a confident 1 - 1e-9 to 1. The first query is the image itself; after it each query is
    one step tried. The sum of the steps is projected onto ball and range only where it is asked about, so that it
    keeps to its frequencies.

    The paper leaves open what comes after the last basis vector; here the same order starts anew. The authors' code
    may also go on to ever higher frequencies (their order `strided`, 7 more rows and columns at a time from 28 of 224),
    and shares one order among the images of a batch.

    Measured with 500 queries on the first 100 test images, seed 0: robust accuracy by n, and of `square`.

        victim                          n = side/8   side/4   side/2   side   square
        cifar10_cnn_a_adv  linf 8/255       37         33       37      52      34
        cifar10_cnn_a_adv  l2 0.5           62         56       57      63      60
        mnist_cnn_a_adv    linf 0.3         92         81       81      89      80
        mnist_cnn_a_adv    l2 2             94         75       73      86      64
    """

    name = "simba-dct"
    paper = "Guo, Gardner, You, Wilson, Weinberger: Simple black-box adversarial attacks, ICML 2019"
    access = "logits"

    queries: PositiveInt = 5000
    """Queries for each image."""
    step_size: Amount = 0.2
    """Length of a step in l2, whatever the threat's norm."""
    dimension: PositiveInt | None = None
    """Side n of the n x n lowest coefficients, in each channel; where left out a quarter of the image's shorter side,
    rounded up."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`. Raises InputError where the band exceeds the image."""
        steps = _Steps(images, side_of(self.dimension, images, self.name), self.step_size, rng)
        result, rows = images.clone(), torch.arange(len(images), device=images.device)
        moved, best = torch.zeros_like(images), torch.full_like(rows, -torch.inf, dtype=torch.float64)
        turn = torch.zeros_like(rows)
        left = rows if victim.remaining is None else (victim.remaining > 0).nonzero().squeeze(1)
        for query in range(self.queries):
            if len(left) < len(rows):
                result[rows] = threat.project(images + moved, images)
                victim, goal, images, rows = victim[left], goal[left], images[left], rows[left]
                moved, best, turn = moved[left], best[left], turn[left]
            if not len(rows):
                return result
            tried = steps.after(moved, rows, turn) if query else moved
            points = threat.project(images + tried, images)
            logits = victim.logits(points)
            height = LOSSES["probability"](logits.double(), goal)
            better = height > best
            reached = torch.zeros_like(better)
            if victim.drop:
                reached = victim.reached(points, goal, logits)
                better |= reached
            moved, best = torch.where(better.view(-1, 1, 1, 1), tried, moved), torch.where(better, height, best)
            if query:
                turn += torch.where(better, 2 - turn % 2, 1)
            done = reached if victim.remaining is None else reached | (victim.remaining == 0)
            left = (~done).nonzero().squeeze(1)
        result[rows] = threat.project(images + moved, images)
        return result

    def cost(self, num_classes: int) -> Cost:
        """All queries."""
        return Cost(self.queries, 0)


class _Steps:
    """The steps of each image: two turns, back and forth, for each basis vector of its order, again and again."""

    def __init__(self, images: Tensor, side: int, size: float, rng: Rng) -> None:
        self._side, self._size = side, size
        self._order = rng.uniform(shape=(images.shape[1] * side**2,)).argsort(dim=1, stable=True)
        # of one row alone the two-dimensional transform is the one-dimensional one
        self._down, self._across = (
            idct2(torch.eye(length, dtype=images.dtype, device=images.device)[:side, None])[:, 0]
            for length in images.shape[-2:]
        )

    def after(self, moved: Tensor, rows: Tensor, turn: Tensor) -> Tensor:
        """`moved` (n, C, H, W) of the images `rows` int64 (n,), each after the step of its turn int64 (n,)."""
        number = self._order[rows, turn // 2 % self._order.shape[1]]
        channel, place = number // self._side**2, number % self._side**2
        wave = self._down[place // self._side, :, None] * self._across[place % self._side, None]
        signed = self._size * (2 * (turn % 2) - 1).to(wave.dtype)
        moved = moved.clone()
        moved[torch.arange(len(rows), device=rows.device), channel] += signed.view(-1, 1, 1) * wave
        return moved


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [SimBADCT]
