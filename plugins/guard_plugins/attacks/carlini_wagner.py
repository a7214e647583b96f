"""Carlini and Wagner's l2 attack."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from guard import LOSSES, Amount, Attack, Cost, Goal, Victim, hookimpl
from guard_plugins.attacks.constant_search import Bracket, Closest, ConstantSearch

_BETA_1, _BETA_2, _TINY = 0.9, 0.999, 1e-8  # Adam's


@dataclass(frozen=True)
class _Descent:
    """The images that one search still works on. Every field has one row per image."""

    victim: Victim
    goal: Goal
    rows: Tensor
    """int64 (n,): where they stand in the batch."""
    images: Tensor
    constant: Tensor
    variable: Tensor
    """w of x' = (tanh(w) + 1) / 2."""
    mean: Tensor
    square: Tensor
    """Adam's moments."""
    loss: Tensor
    """At the last check of progress."""

    def __getitem__(self, keep: Tensor) -> "_Descent":
        if len(keep) == len(self.rows):
            return self
        return _Descent(*(getattr(self, field.name)[keep] for field in fields(self)))


class CarliniWagner(ConstantSearch):
    """Minimises |x' - x|^2 + c * max(0, margin + confidence) by Adam, for the smallest c of each image that works.

    x' = (tanh(w) + 1) / 2 keeps points in [0, 1]. c starts at 1e-3, grows tenfold until the goal is reached and is then
    bisected. The closest point on the way that reached the goal counts; an image that is at its goal already stays as
    it is. On adversarially trained networks other attacks come closer: never use it alone there.

    The paper takes 10,000 steps a search. 1,000 ended under 1 % further away on a clean MNIST network (4 images), but
    5 % in the median and 67 % at worst on a robust one (8 images): raise `steps` where distances are quoted. A search
    ends for an image whose own loss fell by less than 0.01 % during a tenth of the steps; the original judges the sum
    over the batch and so gives up images that still move. w starts at the image shrunk by 0.999 towards grey (the
    original: 0.999999), out of tanh's flat ends: otherwise black and white pixels lie still for so long that such a
    search ends before they move.
    """

    name = "cw"
    paper = "Carlini, Wagner: Towards evaluating the robustness of neural networks, S&P 2017"

    steps: PositiveInt = 1000
    """Most gradient steps for one value of c."""
    learning_rate: Amount = 0.01
    """Adam's."""
    confidence: NonNegativeFloat = 0.0
    """How far beyond the goal a point must be to count, in logits."""

    def cost(self, num_classes: int) -> Cost:
        """A forward for the image itself, and a forward and a backward for each step."""
        return Cost(1 + self.searches * self.steps, self.searches * self.steps)

    def closest(self, victim: Victim, images: Tensor, goal: Goal, enough: float) -> Tensor:
        """See `ConstantSearch.closest`."""
        logits = victim.logits(images)
        already = victim.reached(images, goal, logits) & (goal.margin(logits) <= -self.confidence)
        best, bracket = Closest(images, already), Bracket(images, 1e-3)
        for _ in range(self.searches):
            rows = (best.distance > enough).nonzero().squeeze(1)
            if len(rows):
                shrunk = (images[rows] * 2 - 1).mul_(0.999)
                variable = ((1 + shrunk) / (1 - shrunk)).log_().div_(2)  # atanh, whose rounding depends on the batch
                moments = torch.zeros_like(variable), torch.zeros_like(variable)
                constant, loss = bracket.constant[rows], torch.full_like(rows, math.inf, dtype=images.dtype)
                start = _Descent(victim[rows], goal[rows], rows, images[rows], constant, variable, *moments, loss)
                bracket.judge(self._descend(start, best, enough))
        return best.points

    def _descend(self, now: _Descent, best: Closest, enough: float) -> Tensor:
        """Descend with one c per image, noting what is found; whether each image of the batch reached its goal."""
        reached = torch.zeros_like(best.distance, dtype=torch.bool)
        window = max(self.steps // 10, 1)
        for step in range(self.steps):
            if now.victim.remaining is not None:
                now = now[(now.victim.remaining > 0).nonzero().squeeze(1)]
            if not len(now.rows):
                break
            point = now.variable.tanh().add_(1).mul_(0.5)
            moved = point - now.images
            distance = moved.flatten(1).square().sum(1).sqrt()
            gradient, margin, logits = now.victim.gradient(point, now.goal, LOSSES["margin"])
            news = ~reached[now.rows] | (distance < best.distance[now.rows])
            news = (news & now.goal.reached(logits) & (margin >= self.confidence)).nonzero().squeeze(1)
            if len(news):
                goal = now.goal[news]
                news = news[now.victim[news].reached(point[news], goal, logits[news])]
                reached[now.rows[news]] = True
                best.note(now.rows[news], point[news], distance[news])
            pull = now.constant * (margin < self.confidence)
            slope = moved.mul_(2).addcmul_(gradient, pull.view(-1, 1, 1, 1), value=-1)
            _adam(now, slope.mul_(point).mul_(1 - point).mul_(2), step, self.learning_rate)
            if step % window == 0:
                loss = distance.square() + now.constant * (self.confidence - margin).clamp(min=0)
                going = (loss <= 0.9999 * now.loss) & (best.distance[now.rows] > enough)
                now.loss.copy_(loss)
                now = now[going.nonzero().squeeze(1)]
        return reached


def _adam(now: _Descent, slope: Tensor, step: int, rate: float) -> None:
    """One step of Adam (Kingma and Ba 2015), its bias corrections folded into two numbers."""
    now.mean.mul_(_BETA_1).add_(slope, alpha=1 - _BETA_1)
    now.square.mul_(_BETA_2).addcmul_(slope, slope, value=1 - _BETA_2)
    second = math.sqrt(1 - _BETA_2 ** (step + 1))
    size = rate * second / (1 - _BETA_1 ** (step + 1))
    now.variable.addcdiv_(now.mean, now.square.sqrt().add_(_TINY * second), value=-size)


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [CarliniWagner]
