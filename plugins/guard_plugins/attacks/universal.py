"""UAP: one perturbation for all images."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from guard import LOSSES, Goal, LearnedAttack, Rng, Step, ThreatModel, Victim, hookimpl
from guard_plugins.attacks.deepfool import DeepFool

_ENOUGH = 9.0  # cross-entropy beyond which an image no longer pulls at the perturbation
_DECAY = 0.8


class Universal(nn.Module):
    """One perturbation (1, C, H, W)."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.perturbation = nn.Parameter(torch.zeros(1, *image_shape))

    def forward(self, images: Tensor) -> Tensor:
        """The images with it, in [0, 1]."""
        return (images + self.perturbation).clamp(0, 1)


class Uap(LearnedAttack):
    """One perturbation that fools a model on most images.

    Fooled is an image that is classified otherwise than without it, whatever its label; for a targeted goal, one whose
    target is reached. `deepfool` is the paper's: image after image that is not fooled yet, the shortest way (in l2)
    over its boundary is added, and the sum projected onto the ball. `gradient` steps along the batch's gradient of the
    cross-entropy, cut off at 9 an image. Fooling is not monotone over the passes, so the best one counts, by held-out
    training images. Unlike the authors' code every image is clipped to [0, 1] while it learns, and the number of passes
    is fixed instead of the fooling rate.
    """

    name = "uap"
    paper = "Moosavi-Dezfooli, Fawzi, Fawzi, Frossard: Universal adversarial perturbations, CVPR 2017"
    norms = frozenset({"linf", "l2"})

    by: Literal["gradient", "deepfool"] = "gradient"
    """What the perturbation grows by."""
    epochs: PositiveInt = 5
    """Passes over the images that it learns on."""
    batch_size: PositiveInt = 100
    """Images per step of `gradient`."""
    lr: PositiveFloat = 0.1
    """Length of a step of `gradient` in the first pass, as a share of epsilon; a fifth less in each further pass."""
    images: PositiveInt | None = 5000
    """It learns on the first so many images of the training split."""

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> Universal:
        """No perturbation."""
        return Universal(image_shape)

    def update(self, step: Step, victim: Victim, goal: Goal, proceed: Callable[[], Tensor]) -> Tensor:
        """Adds to the perturbation; there is no weight to train."""
        universal = step.model
        assert isinstance(universal, Universal)
        aim = Goal(victim.labels(step.images)) if goal.targets is None else goal
        with torch.no_grad():
            if self.by == "deepfool":
                return self._nearest(universal, step, victim, aim)
            gradient, losses, _ = victim.gradient(universal(step.images), aim, _enough)
            moved = step.images + universal.perturbation
            gradient = (gradient * ((moved >= 0) & (moved <= 1))).sum(0, keepdim=True)  # through the clipping
            size = step.threat.epsilon * self.lr * _DECAY**step.epoch
            _add(universal, step.threat.steepest_ascent(gradient, size, universal.perturbation), step.threat)
            return -losses.mean()

    def objective(self, step: Step, victim: Victim, goal: Goal) -> Tensor:
        """None: see `update`."""
        raise NotImplementedError

    def seen(
        self, module: nn.Module, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng
    ) -> dict[str, Tensor]:
        """The share of images that are fooled."""
        points = self.points(module, images, goal, threat, rng)
        if goal.targets is not None:
            return {"fooled": goal.reached(victim.logits(points))}
        return {"fooled": victim.labels(points) != victim.labels(images)}

    def craft(self, module: nn.Module, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """The images with the perturbation."""
        points: Tensor = module(images)
        return points

    def picture(self, module: nn.Module) -> Tensor:
        """The perturbation."""
        assert isinstance(module, Universal)
        return module.perturbation[0].detach()

    def _nearest(self, universal: Universal, step: Step, victim: Victim, aim: Goal) -> Tensor:
        """The paper's inner loop; the share of images that it grew by."""
        attack, grown = DeepFool(steps=10), 0
        for row in torch.arange(len(step.images), device=step.images.device).split(1):
            point = universal(step.images[row])
            rng = Rng(0, row, tuple(point.shape[1:]))  # DeepFool draws nothing
            way = attack.nearest(victim[row], point, aim[row], "l2", rng) - point
            if way.any():
                _add(universal, way, step.threat)
                grown += 1
        return step.images.new_tensor(grown / len(step.images))


def _enough(logits: Tensor, goal: Goal) -> Tensor:
    return LOSSES["cross-entropy"](logits, goal).clamp(max=_ENOUGH)


def _add(universal: Universal, way: Tensor, threat: ThreatModel) -> None:
    """Add to the perturbation and put it back into the ball."""
    whole = universal.perturbation + way
    if threat.norm == "linf":
        whole = whole.clamp(-threat.epsilon, threat.epsilon)
    else:
        whole = whole * (threat.epsilon / whole.norm().clamp(min=threat.epsilon))
    universal.perturbation.copy_(whole)


@hookimpl
def guard_attacks() -> Iterable[type[LearnedAttack]]:
    """The attacks of this plugin."""
    return [Uap]
