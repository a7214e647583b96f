"""AutoAttack: four attacks that fail in different ways, in a row."""

from collections.abc import Iterable, Sequence
from typing import Literal

from guard import Attack, Cascade, ThreatModel, hookimpl
from guard_plugins.attacks.apgd import APGD
from guard_plugins.attacks.fab import FAB
from guard_plugins.attacks.square import Square


class AutoAttack(Cascade):
    """The field's standard ensemble, without a parameter to tune: each attack gets the images that those before left.

    `standard`: APGD on the cross-entropy (100 steps), APGD on the targeted DLR loss and FAB, both towards the 9
    likeliest wrong classes (100 steps each), and Square (5,000 queries). `plus`: APGD on the cross-entropy and on the
    untargeted DLR loss and untargeted FAB, 5 restarts each, Square, and then both targeted attacks. For l1 APGD runs 5
    restarts and aims at 5 classes, as the authors have it; their larger first epsilons and a Square for l1 are not
    here. With fewer classes there are fewer targets, and with fewer than 4 the margin stands in for the DLR loss.
    `rand`, for victims that draw: APGD on the cross-entropy and on the DLR loss; each gradient is the mean over `eot`
    draws, and unlike the authors' code no image is dropped because of one draw. Under a targeted goal each member aims
    at its target alone.
    """

    name = "autoattack"
    paper = "Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse attacks, ICML 2020"

    version: Literal["standard", "plus", "rand"] = "standard"
    """Which attacks run."""

    def members(self, threat: ThreatModel) -> Sequence[tuple[str, Attack]]:
        """See `Cascade.members`."""
        l1, plus = threat.norm == "l1", self.version == "plus"
        square: list[tuple[str, Attack]] = [] if l1 else [("square", Square(queries=5000))]
        ce: tuple[str, Attack] = ("apgd-ce", APGD(restarts=5 if l1 or plus else 1))
        towards: tuple[str, Attack] = ("apgd-t", APGD(targets=5 if l1 else 9))
        fab: tuple[str, Attack] = ("fab-t", FAB(targets=9))
        dlr = APGD(loss="dlr", restarts=5 if l1 or plus else 1)
        if self.version == "rand":
            return [ce, ("apgd-dlr", dlr)]
        if not plus:
            return [ce, towards, fab, *square]
        return [ce, ("apgd-dlr", dlr), ("fab", FAB(restarts=5)), *square, towards, fab]


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [AutoAttack]
