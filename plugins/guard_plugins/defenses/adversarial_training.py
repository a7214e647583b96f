"""Adversarial training."""

from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn

from guard import Amount, Attack, Defense, Goal, InputError, Rng, ThreatModel, Victim, held, hookimpl
from guard_plugins.attacks.pgd import PGD


class AdversarialTraining(Defense):
    """Trains on the adversarial images of each batch instead of the clean ones (PGD-AT).

    The attack meets the network in eval mode with frozen parameters, as TRADES and MART do it (Madry's own code leaves
    BatchNorm in train mode), and never stops early. Soft targets (N, K) are attacked as their most probable class.
    """

    name = "adversarial-training"
    paper = (
        "Madry, Makelov, Schmidt, Tsipras, Vladu: Towards deep learning models resistant to adversarial attacks, "
        "ICLR 2018"
    )

    attack: Attack = PGD(steps=7)
    """Crafts the adversarial images: any attack on gradients, logits or labels, by name or mapping."""
    epsilon: Amount | None = None
    """Radius to train at; the config's first threat's where left out. The norm is always that threat's."""

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """Adversarial images (N, C, H, W). Raises InputError where attack or epsilon do not fit the threat's norm."""
        threat = self._own(threat)
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        seed = int(torch.randint(2**62, (), generator=generator))
        rng = Rng(seed, torch.arange(len(images), device=images.device), tuple(images.shape[1:]))
        with held(model):
            victim = Victim(model, images, rng.fold(0), drop=False)
            return self.attack.perturb(victim, images, Goal(labels), threat, rng).detach()

    def _own(self, threat: ThreatModel) -> ThreatModel:
        """The threat to train under."""
        if threat.norm not in self.attack.norms:
            raise InputError(
                f"attack '{self.attack.name}' of defense '{self.name}' cannot attack in {threat.norm}. "
                f"Give it another attack, or a threat in {' or '.join(sorted(self.attack.norms))}"
            )
        try:
            return threat if self.epsilon is None else ThreatModel(norm=threat.norm, epsilon=self.epsilon)
        except InputError as error:
            raise InputError(f"defense '{self.name}': {error}") from error


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [AdversarialTraining]
