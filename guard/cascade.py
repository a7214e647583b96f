"""Cascade: attacks in a row, each on the images that those before it left."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from guard.attack import Attack, Cost, attempts
from guard.errors import ContractError
from guard.goal import Goal
from guard.rng import Rng
from guard.threat import ThreatModel
from guard.victim import Victim


class Cascade(Attack):
    """Several attacks as one, cheapest first. A subclass writes `members`.

    What each member costs, and which images it breaks, is counted under its name and stands in the report. An image
    keeps the point of the first member that broke it; where the victim does not let an attack stop at success, the
    point furthest beyond the goal.
    """

    after: Attack | None = None
    """An attack that goes first: this one takes over the images that it leaves. An evaluation that has run it already
    does not run it again."""

    @abstractmethod
    def members(self, threat: ThreatModel) -> Sequence[tuple[str, Attack]]:
        """The attacks in their order, each with a name of its own."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`."""
        members = self.sequence(threat)
        if not members:
            raise ContractError("it has no members. Return (name, attack) pairs from members()")

        def run(number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
            name, attack = members[number]
            part = victim[rows].part(name, access=attack.access, bf16=attack.bf16)
            points = attack.perturb(part, images[rows], goal[rows], threat, rng[rows].fold(number))
            _check(name, points, images[rows], threat)
            return points, torch.arange(len(rows), device=rows.device)

        def credit(number: int, rows: Tensor) -> None:
            victim.credit(members[number][0], rows)

        return attempts(victim, images, goal, len(members), run, credit)

    def sequence(self, threat: ThreatModel) -> list[tuple[str, Attack]]:
        """What goes first, and the members; a name that repeats is numbered."""
        first = [] if self.after is None else [(self.after.name or type(self.after).__name__, self.after)]
        found: dict[str, Attack] = {}
        for name, attack in (*first, *self.members(threat)):
            number = sum(known == name or known.startswith(f"{name}#") for known in found) + 1
            found[name if number == 1 else f"{name}#{number}"] = attack
        return list(found.items())

    def cost(self, num_classes: int) -> Cost | None:
        """All members', as they are for linf (or the last of its norms), and a forward after each."""
        threat = ThreatModel(norm=max(self.norms), epsilon=1)
        costs = [attack.cost(num_classes) for _, attack in self.sequence(threat)]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return None
        return Cost(sum(cost.forwards + 1 for cost in known), sum(cost.backwards for cost in known))


def _check(name: str, points: Tensor, images: Tensor, threat: ThreatModel) -> None:
    """Raise ContractError unless a member returned images inside the ball and [0, 1]: a later one would hide it."""
    same = points.shape == images.shape
    if not (same and threat.contains(points, images).all() and points.min() >= 0 and points.max() <= 1):  # NaN too
        raise ContractError(f"its member '{name}' returned what are no images inside {threat} and [0, 1]")
