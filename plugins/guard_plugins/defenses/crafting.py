"""What defenses share that craft an adversary while the network is trained."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from guard import Amount, Attack, Defense, Goal, InputError, Rng, ThreatModel, Victim, held

BatchNormMode = Literal["eval", "train"]


class WithRadius(Defense):
    """A base: trains at a radius of its own."""

    epsilon: Amount | None = None
    """Radius to train at; the config's first threat's where left out. The norm is always that threat's."""

    def own(self, threat: ThreatModel, *, finite: bool = False) -> ThreatModel:
        """The threat to train under. Raises InputError where epsilon does not fit the norm, and for
        one that is inf where it has to be finite."""
        try:
            threat = threat if self.epsilon is None else ThreatModel(norm=threat.norm, epsilon=self.epsilon)
        except InputError as error:
            raise InputError(f"defense '{self.name}': {error}") from error
        if finite and math.isinf(threat.epsilon):
            raise InputError(f"epsilon is inf: defense '{self.name}' takes steps of its length. Give it an epsilon")
        return threat


class Crafting(WithRadius):
    """A base: crafts an adversary with attacks on the network that is trained.

    They meet it with frozen parameters and without dropout, and never stop early. The running statistics of BatchNorm
    do not move (in the authors' code of most papers they do, where it stays in train mode): an attack may ask about
    blank images. Soft targets (N, K) are attacked as their most probable class.
    """

    batch_norm: BatchNormMode = "eval"
    """What BatchNorm uses while the adversary is crafted: eval, its running statistics; train, the batch's."""

    def crafted(
        self,
        attack: Attack,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        threat: ThreatModel,
        generator: Generator,
    ) -> Tensor:
        """Adversarial images (N, C, H, W). Raises InputError where the attack does not fit the threat's norm."""
        if threat.norm not in attack.norms:
            raise InputError(
                f"attack '{attack.name}' of defense '{self.name}' cannot attack in {threat.norm}. "
                f"Give it another attack, or a threat in {' or '.join(sorted(attack.norms))}"
            )
        with self.facing(model, images, targets, generator) as (victim, goal, rng):
            return attack.perturb(victim, images, goal, threat, rng).detach()

    @contextmanager
    def facing(
        self, model: nn.Module, images: Tensor, targets: Tensor, generator: Generator
    ) -> Iterator[tuple[Victim, Goal, Rng]]:
        """The network as an attack on these images meets it, the goal, and draws that follow from the generator."""
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        rng = drawn(images, generator)
        layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
        with held(model), unmoved(model):
            for layer in layers if self.batch_norm == "train" else ():
                layer.training = True  # `held` puts it back to this, too
            yield Victim(model, images, rng.fold(0), drop=False), Goal(labels), rng


def drawn(images: Tensor, generator: Generator) -> Rng:
    """Draws for each image of a batch, seeded by the generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return Rng(seed, torch.arange(len(images), device=images.device), tuple(images.shape[1:]))


@contextmanager
def unmoved(model: nn.Module) -> Iterator[None]:
    """Put a network's buffers, which BatchNorm's running statistics are, back as they were."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
