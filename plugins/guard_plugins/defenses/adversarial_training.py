"""Adversarial training."""

from collections.abc import Iterable

from pydantic import field_validator
from torch import Generator, Tensor, nn

from guard import Attack, Defense, LearnedAttack, ThreatModel, hookimpl
from guard_plugins.attacks.pgd import PGD
from guard_plugins.defenses.crafting import Crafting


class AdversarialTraining(Crafting):
    """Trains on the adversarial images of each batch instead of the clean ones (PGD-AT).

    The attack meets the network with frozen parameters, without dropout and, unless `batch_norm` says otherwise, with
    BatchNorm in eval mode, as TRADES and MART do it (Madry's own code leaves it in train mode). It never stops early.
    Soft targets (N, K) are attacked as their most probable class.
    """

    name = "adversarial-training"
    paper = (
        "Madry, Makelov, Schmidt, Tsipras, Vladu: Towards deep learning models resistant to adversarial attacks, "
        "ICLR 2018"
    )

    attack: Attack = PGD(steps=7)
    """Crafts the adversarial images: any attack on gradients, logits or labels, by name or mapping."""

    @field_validator("attack")
    @classmethod
    def _asks(cls, attack: Attack) -> Attack:
        if isinstance(attack, LearnedAttack):
            raise ValueError(f"'{attack.name}' learns before it attacks; give one that attacks the network as it is")
        return attack

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """Adversarial images (N, C, H, W). Raises InputError where attack or epsilon do not fit the threat's norm."""
        return self.crafted(self.attack, model, images, targets, self.own(threat), generator)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [AdversarialTraining]
