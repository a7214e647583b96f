"""TRADES: clean accuracy, and predictions that an adversary does not move."""

import math
from collections.abc import Iterable

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Generator, Tensor, nn

from guard import (
    Amount,
    Attack,
    Cost,
    Defense,
    Goal,
    InputError,
    IterativeAttack,
    Memory,
    Now,
    Rng,
    ThreatModel,
    Victim,
    hookimpl,
)
from guard_plugins.defenses.adversarial_training import AdversarialTraining

_TRADES = (
    "Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan: Theoretically principled trade-off between robustness and accuracy, "
    "ICML 2019"
)


class KLPGD(IterativeAttack):
    """Steepest ascent of KL(p(x) || p(x')), how far the prediction moves from that on the clean image; projected.

    It starts close to the image, where the divergence has no gradient, and asks for no label. Towards a target it
    increases minus the target's cross-entropy instead. For l2 and l1 a step goes along the steepest direction.
    """

    name = "kl-pgd"
    paper = _TRADES

    step_size: Amount | None = None
    """Length of a step; 2.5 epsilon / steps where left out (the paper's 10 steps of 0.007 at 0.031 are 2.26)."""
    start_std: PositiveFloat = 0.001
    """Standard deviation of the normal draw, in units of the [0, 1] range, that the first point lies away."""

    def start(
        self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
    ) -> tuple[Tensor, Memory]:
        """A point close to the image, and the clean prediction."""
        point = threat.project(images + self.start_std * rng.normal().to(images.dtype), images)
        return point, {"clean": victim.logits(images).log_softmax(1)}

    def gradient(self, victim: Victim, point: Tensor, goal: Goal, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Of the divergence."""
        if goal.towards is not None:
            return victim.gradient(point, goal)
        return victim.gradient(point, goal, lambda logits, goal: divergence(memory["clean"], logits))

    def move(self, now: Now, memory: Memory) -> Tensor:
        """One step of steepest ascent."""
        if self.step_size is None and math.isinf(now.threat.epsilon):
            raise InputError(f"epsilon is inf: give attack '{self.name}' a step_size")
        size = self.step_size or 2.5 * now.threat.epsilon / self.steps
        return now.point + now.threat.steepest_ascent(now.gradient, size, now.point)

    def cost(self, num_classes: int) -> Cost:
        """A forward and a backward for each step, a forward between restarts, and one of the clean image in each."""
        steps = self.steps * self.restarts
        return Cost(steps + 2 * self.restarts - 1, steps)


class TRADES(AdversarialTraining):
    """Trains on CE(f(x), y) + beta KL(p(x) || p(x')), where x' is the image in the ball that maximizes the divergence.

    Both are means over the batch; the gradient goes through p(x) and p(x'). The adversary is crafted with BatchNorm in
    eval mode, as in the authors' code; the loss is taken in train mode, on x and x' in a forward each (theirs repeats
    the one of x), so that they do not meet in BatchNorm's statistics. Soft targets (N, K) enter the cross-entropy.
    """

    name = "trades"
    paper = _TRADES

    attack: Attack = KLPGD()
    """Crafts the adversarial images: any attack on gradients, logits or labels, by name or mapping."""
    beta: NonNegativeFloat = 6.0
    """Weight of the divergence; the authors take 1 on MNIST."""

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        """The sum of both terms."""
        clean = model(images)
        moved = divergence(clean.log_softmax(1), model(adversarial)).mean()
        return F.cross_entropy(clean, targets) + self.beta * moved


def divergence(log_clean: Tensor, logits: Tensor) -> Tensor:
    """KL(p || p') of each row (N,), from log p and from the logits of p'."""
    return F.kl_div(logits.log_softmax(1), log_clean, reduction="none", log_target=True).sum(1)


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [KLPGD]


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [TRADES]
