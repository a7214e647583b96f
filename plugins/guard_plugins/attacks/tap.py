"""TAP: steps that also drive the features apart, along perturbations that are smooth."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from guard import LOSSES, Attack, Cost, Goal, Memory, Rng, ThreatModel, Victim, hookimpl
from guard_plugins.attacks.gradient_sign import BIM

_log = logging.getLogger(__name__)

_TINY = 1e-12
_OF = "layers."


class TAP(BIM):
    """Transferable adversarial perturbations: BIM on the sum of three terms.

    The loss; `feature_weight` times the sum over `layers` of how far the features lie from those of the clean image,
    each first brought to a power that lifts the small ones; and `smoothness_weight` times the absolute value of the
    perturbation after a 3 x 3 box filter (zeros beyond the border), which rewards low frequencies. All three are
    added for a targeted goal too; only the loss then moves towards the target. At the image itself the two new terms
    have no gradient, so the first step is FGSM's.

    The power's slope is infinite at 0: u becomes sign(u) (|u| + 1e-12)^power, whose slope is finite, and 0 at 0.
    Published reimplementations disagree on the distance and on whether the smoothness is summed; both are parameters
    here. The weighted terms are logged at each step (level DEBUG, means over the batch).
    """

    name = "tap"
    paper = "Zhou et al.: Transferable adversarial perturbations, ECCV 2018"
    bf16 = False  # the features differ by less than it resolves

    layers: tuple[str, ...] | None = None
    """Whose outputs are compared, by their names in the model; where left out, one at each scale (a factor of 2 in
    side) with more than one position: the outermost module there, and of several the last, which is the end of a stage.
    A network with fewer than three scales, such as a transformer, is cut into quarters instead, and in one without
    positions the hidden vectors are."""
    feature_weight: NonNegativeFloat = 0.05
    """Weight of the features' distance."""
    distance: Literal["squared", "plain"] = "squared"
    """Whether a layer's Euclidean distance is squared."""
    power: Annotated[float, Field(gt=0, le=1)] = 0.5
    """What the absolute values of the features are raised to."""
    smoothness_weight: NonNegativeFloat = 0.1
    """Weight of the smoothness."""
    smoothness: Literal["sum", "mean"] = "sum"
    """Whether the smoothness is summed over all values of the perturbation or averaged."""

    def start(
        self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
    ) -> tuple[Tensor, Memory]:
        """BIM's start, with the features of the clean image."""
        point, _ = super().start(victim, images, goal, threat, rng, restart)
        memory = {"images": images}
        if self.feature_weight:
            layers = default_layers(victim.layers) if self.layers is None else self.layers
            _log.debug("%s compares the layers %s", self.name, ", ".join(layers) or "(none)")
            for name, value in _affordable(victim, images, layers).items():
                memory[_OF + name] = self.normalised(value)
        return point, memory

    def gradient(self, victim: Victim, point: Tensor, goal: Goal, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Of the sum of the three terms."""
        clean = {key.removeprefix(_OF): value for key, value in memory.items() if key.startswith(_OF)}
        moved: list[Tensor] = []

        def objective(logits: Tensor, goal: Goal, features: Mapping[str, Tensor] | None = None) -> Tensor:
            total = logits.new_zeros(len(logits))
            for name, value in (features or {}).items():
                total = total + self.apart(self.normalised(value), clean[name])
            moved.append(self.feature_weight * total.detach())
            return LOSSES[self.loss](logits, goal) + self.feature_weight * total

        gradient, loss, logits = victim.gradient(point, goal, objective, tuple(clean))
        smooth, slope = self.smooth(point - memory["images"])
        if _log.isEnabledFor(logging.DEBUG):
            features = torch.stack(moved).mean(0)
            terms = [float(term.mean()) for term in (loss - features, features, smooth)]
            _log.debug("%s: loss %.4g, features %.4g, smoothness %.4g, %d images", self.name, *terms, len(point))
        return gradient + slope, loss + smooth, logits

    def normalised(self, features: Tensor) -> Tensor:
        """The features, each raised to the power with its sign kept."""
        return features.sign() * (features.abs() + _TINY) ** self.power

    def apart(self, features: Tensor, clean: Tensor) -> Tensor:
        """Distance of each row from the clean one, (N,)."""
        difference = (features - clean).flatten(1)
        if self.distance == "squared":
            return difference.square().sum(1)
        return torch.linalg.vector_norm(difference, dim=1)  # slope 0 at 0

    def smooth(self, perturbation: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted smoothness of perturbations (N, C, H, W), (N,), and its gradient: the filter is its own
        adjoint."""
        weight = self.smoothness_weight
        if self.smoothness == "mean":
            weight /= math.prod(perturbation.shape[1:])
        local = _box(perturbation)
        return weight * local.abs().flatten(1).sum(1), weight * _box(local.sign())

    def cost(self, num_classes: int) -> Cost:
        """A forward and a backward for each step, a forward between restarts, and one of the clean image in each."""
        steps, clean = self.steps * self.restarts, self.restarts if self.feature_weight else 0
        return Cost(steps + self.restarts - 1 + clean, steps)


class PaperTAP(TAP):
    """TAP with the weights that its authors are quoted with, for comparison; `tap` is the stronger attack.

    The smoothness weighs so much that after the first step the other terms hardly count.
    """

    name = "tap-paper"

    distance: Literal["squared", "plain"] = "plain"
    """Whether a layer's Euclidean distance is squared."""
    smoothness_weight: NonNegativeFloat = 1e3
    """Weight of the smoothness."""


def default_layers(layers: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The layers to compare, of all those that run (name -> shape of an answer), in their order; see `TAP.layers`."""
    sizes = {name: _positions(shape) for name, shape in layers.items()}
    names = [name for name, size in sizes.items() if size > 1] or list(layers)[:-1]  # the last vector is the logits
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(round(math.log2(sizes[name]) / 2), []).append(name)
    if len(groups) < 3:
        groups = {}
        for place, name in enumerate(names):
            groups.setdefault(4 * place // len(names), []).append(name)
    return tuple(min(reversed(group), key=lambda name: name.count(".")) for group in groups.values())


def _positions(shape: tuple[int, ...]) -> int:
    """How many places a layer answers at: of a map (C, H, W) or (H, H, C) its pixels, of tokens (T, D) the tokens."""
    channels_first = len(shape) > 2 and shape[0] != shape[1]
    return math.prod(shape[1:] if channels_first else shape[:-1])


def _affordable(victim: Victim, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """Features of the images; zeros for those whose query budget is spent, which no step will reach."""
    if victim.remaining is None:
        return victim.features(images, layers)
    able = victim.remaining > 0
    some = victim[able].features(images[able], layers) if able.any() else {}
    return {
        name: value.new_zeros(len(images), *value.shape[1:]).index_put((able,), value) for name, value in some.items()
    }


def _box(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 3, stride=1, padding=1)


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [TAP, PaperTAP]
