"""Bridges: other ways back through a network than its own gradient, for the candidates of an adaptive attacker."""

from math import isfinite, prod

import torch
from torch import Tensor, nn

from guard.defense import Defense
from guard.layers import Around
from guard.rng import Rng
from guard.threat import ThreatModel

SMOOTHED = 4
"""Draws that a smoothed gradient is averaged over."""

_REACH = 2


class Straight(Defense):
    """A stage whose backward is the identity, whatever surrogate it brings (BPDA, Athalye et al. 2018)."""

    differentiable = False
    stage: Defense

    @property
    def randomized(self) -> bool:  # type: ignore[override]
        """Whether the stage draws."""
        return self.stage.randomized

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The stage's."""
        return self.stage.preprocess(images, rng)


class Smoothing(Defense):
    """Gaussian noise in front of everything, so that the mean gradient of several draws is that of a smoothed network.

    Its standard deviation moves a pixel by half of what the ball lets all pixels move alike.
    """

    randomized = True
    threat: ThreatModel

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """Noisy images in [0, 1], in which a stage expects them; the gradient is that without the clamp."""
        size = prod(images.shape[1:])
        each = {"linf": 1.0, "l2": size**-0.5, "l1": 1 / size}[self.threat.norm] * self.threat.epsilon
        noisy = images + each / _REACH * rng.normal().to(images)
        return noisy + (noisy.clamp(0, 1) - noisy).detach()


def bridges(stages: tuple[Defense, ...], threat: ThreatModel) -> list[tuple[str, tuple[Defense, ...]]]:
    """Stages with other ways back than their own: the identity where one brings a surrogate, and smoothed."""
    found: list[tuple[str, tuple[Defense, ...]]] = []
    if any(_bridged(stage) for stage in stages):
        found.append(("identity", tuple(Straight(stage=stage) if _bridged(stage) else stage for stage in stages)))
    if isfinite(threat.epsilon):
        found.append(("smoothed", (Smoothing(threat=threat), *stages)))
    return found


def _bridged(stage: Defense) -> bool:
    return not stage.differentiable and stage.overrides("surrogate")


class Relaxed(Around):
    """A model with the backward of another one: what it answers is its own."""

    def __init__(self, model: nn.Module, stand_in: nn.Module) -> None:
        super().__init__()
        self.model, self.inner = model, stand_in

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        answer: Tensor = self.inner(images)
        with torch.no_grad():
            own: Tensor = self.model(images)
        return answer + (own - answer).detach()
