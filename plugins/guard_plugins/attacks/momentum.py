"""MI-FGSM: momentum over the steps of BIM."""

from collections.abc import Iterable

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from guard import Attack, Goal, Memory, Now, Rng, ThreatModel, Victim, hookimpl
from guard_plugins.attacks.gradient_sign import BIM


class MIFGSM(BIM):
    """BIM that follows the sum of all gradients so far, each divided by the mean of its absolute values.

    The paper divides by the l1 norm; per image that is the same direction for one image size. A zero gradient adds
    nothing (the division 0/0 that other libraries make is not made).
    """

    name = "mi-fgsm"
    paper = "Dong, Liao, Pang, Su, Zhu, Hu, Li: Boosting adversarial attacks with momentum, CVPR 2018"

    decay: NonNegativeFloat = 1.0
    """How much of the momentum a step keeps."""

    def start(
        self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
    ) -> tuple[Tensor, Memory]:
        """BIM's start, with no momentum."""
        point, _ = super().start(victim, images, goal, threat, rng, restart)
        return point, {"momentum": torch.zeros_like(images)}

    def direction(self, now: Now, memory: Memory) -> Tensor:
        """The momentum."""
        scale = now.gradient.abs().mean((1, 2, 3), keepdim=True)
        unit = now.gradient / scale.clamp(min=torch.finfo(scale.dtype).tiny)
        memory["momentum"] = self.decay * memory["momentum"] + unit
        return memory["momentum"]


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [MIFGSM]
