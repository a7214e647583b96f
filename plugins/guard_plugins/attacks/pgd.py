"""Projected gradient descent."""

from collections.abc import Iterable

from torch import Tensor

from guard import LOSSES, Amount, Attack, Goal, IterativeAttack, LossName, Memory, Now, Victim, hookimpl


class PGD(IterativeAttack):
    """Steepest ascent from a uniform draw of the ball, projected after each step, with restarts.

    The random start is uniform in the ball's volume. For l1 the first restart starts at the image, and a step fills the
    pixels with the largest gradient up to the room they have left.
    """

    name = "pgd"
    paper = "Madry, Makelov, Schmidt, Tsipras, Vladu: Towards deep learning models resistant to adversarial attacks, ICLR 2018"

    step_size: Amount | None = None
    """Length of a step; 2.5 epsilon / steps where left out, so that any point of the ball can be reached."""
    loss: LossName = "cross-entropy"
    """What the steps increase."""

    def gradient(self, victim: Victim, point: Tensor, goal: Goal, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Of the chosen loss."""
        return victim.gradient(point, goal, LOSSES[self.loss])

    def move(self, now: Now, memory: Memory) -> Tensor:
        """One step of steepest ascent."""
        size = 2.5 * now.threat.epsilon / self.steps if self.step_size is None else self.step_size
        return now.point + now.threat.steepest_ascent(now.gradient, size, now.point)


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [PGD]
