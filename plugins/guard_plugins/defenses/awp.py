"""AWP: adversarial weight perturbation."""

from collections.abc import Callable, Iterable

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from guard import Defense, Step, hookimpl
from guard_plugins.defenses.crafting import unmoved

_TINY = 1e-20


class AWP(Defense):
    """Takes each update at weights that are perturbed against it: w + v, with v = gamma |w| g / |g| for each tensor.

    g is the gradient of the stack's loss at w, on the adversary that was crafted at w; after the update at w + v, v is
    taken away again. It stands with any loss and adversary: [adversarial-training, awp], [trades, awp]. All parameters
    of more than one dimension move (the authors' code: those of them whose name says weight), biases and those of
    normalizations do not. The ascent meets the network in train mode, and running statistics do not move in it.
    """

    name = "awp"
    paper = "Wu, Xia, Wang: Adversarial weight perturbation helps robust generalization, NeurIPS 2020"

    gamma: PositiveFloat = 0.01
    """Length of the perturbation, as a part of the tensor's; the authors take 0.005 with TRADES."""
    warmup: NonNegativeInt = 0
    """Epochs without it; the authors take 10 with TRADES."""

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        """One update at the perturbed weights."""
        if step.epoch < self.warmup:
            return proceed()
        weights = [weight for weight in step.model.parameters() if weight.requires_grad and weight.dim() > 1]
        with unmoved(step.model):
            gradients = torch.autograd.grad(step.objective(), weights, materialize_grads=True)
        with torch.no_grad():
            moves = [
                gradient * (self.gamma * weight.norm() / (gradient.norm() + _TINY))
                for weight, gradient in zip(weights, gradients, strict=True)
            ]
            for weight, move in zip(weights, moves, strict=True):
                weight.add_(move)
        try:
            return proceed()
        finally:
            with torch.no_grad():
                for weight, move in zip(weights, moves, strict=True):
                    weight.sub_(move)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [AWP]
