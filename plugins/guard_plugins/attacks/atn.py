"""ATN: a network that turns an image into an adversarial one, by minding the order of the classes."""

from collections.abc import Iterable
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from guard import Goal, LearnedAttack, MinimalAttack, Norm, Rng, Step, ThreatModel, Victim, hookimpl


class Transformation(nn.Module):
    """Images (N, C, H, W) to images of the same shape in [0, 1], by two hidden layers."""

    def __init__(self, image_shape: tuple[int, int, int], hidden: int, residual: bool) -> None:
        super().__init__()
        size, self._residual = prod(image_shape), residual
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, size),
            nn.Unflatten(1, image_shape),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The adversarial images; with a residual, the images and what is added."""
        answer: Tensor = self.layers(images)
        return (images + answer.tanh()).clamp(0, 1) if self._residual else answer.sigmoid()


class Atn(LearnedAttack, MinimalAttack):
    """A network learns to answer each image with one that the model takes for the target and otherwise ranks as before.

    It minimises beta ||g(x) - x|| + ||f(g(x)) - r(f(x))||^2, in l2, f in probabilities, where r lifts the target to
    alpha times the largest probability and normalises. The paper says L2 of both; the second is squared here, without
    which the order is kept less often and at a larger distance. One network learns one target. It knows no bound: it
    is reported by its distance, and for an epsilon only what lies inside the ball counts, or else its projection. For
    an untargeted goal, which the paper lacks, the target is each image's runner-up. The network is the paper's fully
    connected one of MNIST, in place of its convolutional ones for photographs too; its sigmoid (aae) and our clipping
    (perturbation) keep to [0, 1].
    """

    name = "atn"
    paper = "Baluja, Fischer: Adversarial transformation networks: learning to generate adversarial examples, 2017"
    form: Literal["aae", "perturbation"] = "aae"
    """aae: the network answers the image; perturbation (P-ATN): what is added to it."""
    beta: PositiveFloat = 0.01
    """How much distance counts."""
    alpha: Annotated[float, Field(gt=1)] = 1.5
    """How far beyond the first class the target is lifted."""
    hidden: PositiveInt = 1000
    """Units in each hidden layer."""
    epochs: PositiveInt = 5
    """Passes over the images that it learns on."""

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> Transformation:
        """The network with fresh weights."""
        return Transformation(image_shape, self.hidden, residual=self.form == "perturbation")

    def objective(self, step: Step, victim: Victim, goal: Goal) -> Tensor:
        """The paper's sum, a mean over the batch."""
        points = step.model(step.images)
        wanted = self._reranked(victim.logits(step.images).softmax(1), goal)
        apart = (victim.module(points).softmax(1) - wanted).square().sum(1)
        distance = torch.linalg.vector_norm((points - step.images).flatten(1), dim=1)  # its gradient at 0 is 0
        step.note("l2 distance", distance)
        return (self.beta * distance + apart).mean()

    def craft(self, module: nn.Module, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """What the network answers."""
        points: Tensor = module(images)
        return points

    def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: Norm, rng: Rng) -> Tensor:
        """See `MinimalAttack.nearest`; the one point there is."""
        with torch.no_grad():
            points: Tensor = self.module(images)
        return points

    def _reranked(self, probabilities: Tensor, goal: Goal) -> Tensor:
        """The order that is wanted: the target first, and all others as they were."""
        targets = goal.targets
        if targets is None:
            targets = probabilities.scatter(1, goal.labels[:, None], -1.0).argmax(1)
        lifted = self.alpha * probabilities.amax(1, keepdim=True)
        raised = probabilities.scatter(1, targets[:, None], lifted)
        return raised / raised.sum(1, keepdim=True)


@hookimpl
def guard_attacks() -> Iterable[type[LearnedAttack]]:
    """The attacks of this plugin."""
    return [Atn]
