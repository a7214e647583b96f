"""Projected gradient descent."""

from collections.abc import Iterable

from guard import Attack, hookimpl
from guard_plugins.attacks.gradient_sign import SteepestAscent


class PGD(SteepestAscent):
    """Steepest ascent from a uniform draw of the ball, projected after each step, with restarts.

    The random start is uniform in the ball's volume. For l1 the first restart starts at the image, and a step fills the
    pixels with the largest gradient up to the room they have left. The steps together are 2.5 epsilon long unless
    `step_size` says otherwise, so that any point of the ball can be reached.
    """

    name = "pgd"
    paper = "Madry et al.: Towards deep learning models resistant to adversarial attacks, ICLR 2018"
    reach = 2.5


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [PGD]
