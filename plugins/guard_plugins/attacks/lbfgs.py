"""Szegedy et al.'s attack: box-constrained L-BFGS."""

from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from guard import Attack, Cost, Goal, Victim, hookimpl
from guard_plugins.attacks.constant_search import Bracket, Closest, ConstantSearch


class _Spent(Exception):
    """A search has asked the model as often as it may."""


class LBFGS(ConstantSearch):
    """Minimises |d|^2 + c * cross-entropy of the target with L-BFGS-B, for the smallest c of each image that works.

    The paper writes c |d| + loss and looks for the c by a line search; the square has a gradient at 0, where the
    search starts. c starts at 0.01, grows tenfold until the goal is reached and is then bisected. The closest point on
    the way that reached the goal counts. The paper is targeted; an untargeted goal goes towards the most likely wrong
    class and is content with any. scipy's optimizer works in float64, on one image at a time.
    """

    name = "l-bfgs"
    paper = "Szegedy et al.: Intriguing properties of neural networks, ICLR 2014"

    evaluations: PositiveInt = 100
    """Most gradients for one value of c."""

    def cost(self, num_classes: int) -> Cost:
        """A forward for the image itself, and a forward and a backward for each evaluation."""
        return Cost(1 + self.searches * self.evaluations, self.searches * self.evaluations)

    def closest(self, victim: Victim, images: Tensor, goal: Goal, enough: float) -> Tensor:
        """See `ConstantSearch.closest`."""
        logits = victim.logits(images)
        best, bracket = Closest(images, victim.reached(images, goal, logits)), Bracket(images, 0.01)
        if goal.towards is None:
            goal = goal.aim(logits.scatter(1, goal.labels[:, None], -float("inf")).argmax(1))
        for _ in range(self.searches):
            reached = torch.zeros_like(best.distance, dtype=torch.bool)
            for row in (best.distance > enough).nonzero():  # int64 (1,) each
                constant = float(bracket.constant[row])
                reached[row] = self._minimise(victim[row], images[row], goal[row], constant, row, best)
            bracket.judge(reached)
        return best.points

    def _minimise(self, victim: Victim, image: Tensor, goal: Goal, constant: float, row: Tensor, best: Closest) -> bool:
        """Minimise for one image (1, C, H, W), noting what is found; whether it reached its goal."""
        from scipy.optimize import minimize

        origin = image.flatten().double().cpu().numpy()
        evaluations, found = 0, False

        def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal evaluations, found
            if evaluations == self.evaluations or (victim.remaining is not None and int(victim.remaining) < 1):
                raise _Spent
            evaluations += 1
            point = torch.tensor(flat, dtype=image.dtype, device=image.device).view_as(image)
            gradient, value, logits = victim.gradient(point, goal)
            moved = flat - origin
            square = float(moved @ moved)
            if victim.reached(point, goal, logits).item():
                found = True
                best.note(row, point, value.new_tensor([square]).sqrt())
            slope = 2 * moved - constant * gradient.flatten().double().cpu().numpy()
            return square - constant * float(value), slope

        with suppress(_Spent):
            minimize(evaluate, origin, jac=True, method="L-BFGS-B", bounds=[(0, 1)] * len(origin))
        return found


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [LBFGS]
