"""Cascade: attacks in a row, each on the images that those before it left."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from guard.attack import Attack, Cost, attempts
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
        members = self._all(threat)

        def run(number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
            name, attack = members[number]
            part = victim[rows].part(name)
            points = attack.perturb(part, images[rows], goal[rows], threat, rng[rows].fold(number))
            return points, torch.arange(len(rows), device=rows.device)

        def credit(number: int, rows: Tensor) -> None:
            victim.part(members[number][0]).credit(rows)

        return attempts(victim, images, goal, len(members), run, credit)

    def _all(self, threat: ThreatModel) -> list[tuple[str, Attack]]:
        first = [] if self.after is None else [(self.after.name, self.after)]
        return [*first, *self.members(threat)]

    def cost(self, num_classes: int) -> Cost | None:
        """All members', as they are for linf, and a forward after each."""
        costs = [attack.cost(num_classes) for _, attack in self._all(ThreatModel(norm="linf", epsilon=1))]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return None
        return Cost(sum(cost.forwards + 1 for cost in known), sum(cost.backwards for cost in known))
