"""DeepFool: steps to the nearest linearised decision boundary."""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from guard import Attack, Cost, Goal, MinimalAttack, Norm, Rng, Victim, hookimpl


class DeepFool(MinimalAttack):
    """Takes the model for linear around the point, goes to the nearest boundary of the label, and repeats.

    As in the paper the model is linearised at the point without the overshoot, and the point with it is tested (the
    authors' code does both with it; clipped points then creep up to a boundary and never cross it). As in their code
    the classes looked at are those most likely at the image. Unlike both, every point is clipped to [0, 1], and the
    next step makes up for what was clipped: on a linear model only the overshoot separates the result from the optimum
    in the box. A targeted goal, which the paper lacks, goes to the boundary of its target and the class that leads.
    """

    name = "deepfool"
    paper = "Moosavi-Dezfooli, Fawzi, Frossard: DeepFool: a simple and accurate method to fool deep networks, CVPR 2016"
    norms = frozenset({"l2", "linf"})

    steps: PositiveInt = 50
    """Most linearisations."""
    overshoot: NonNegativeFloat = 0.02
    """How far beyond the boundary it goes, as a share of the way."""
    candidates: Annotated[int, Field(ge=2)] = 10
    """How many classes it looks at, the label among them."""

    def cost(self, num_classes: int) -> Cost:
        """A forward for the image itself; for each step two, and a backward for each class that it looks at."""
        return Cost(1 + 2 * self.steps, self.steps * min(self.candidates, num_classes))

    def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: Norm, rng: Rng) -> Tensor:
        """See `MinimalAttack.nearest`."""
        logits = victim.logits(images)
        rows, left = torch.arange(len(images), device=images.device), ~victim.reached(images, goal, logits)
        result, origin, base = images.clone(), images, images
        classes = _likely(logits, goal.labels, self.candidates)
        for _ in range(self.steps):
            if victim.remaining is not None:
                left &= victim.remaining > 1
            keep = left.nonzero().squeeze(1)
            if not len(keep):
                break
            victim, goal = victim[keep], goal[keep]
            rows, origin, base, logits, classes = (part[keep] for part in (rows, origin, base, logits, classes))
            if goal.towards is not None:
                leading = logits.scatter(1, goal.towards[:, None], -float("inf")).argmax(1)
                classes = torch.stack([leading, goal.towards], 1)
            jacobian, logits = victim.jacobian(base, classes)
            base = (base + _to_boundary(jacobian, logits.gather(1, classes), norm)).clamp_(0, 1)
            point = (origin + (1 + self.overshoot) * (base - origin)).clamp_(0, 1)
            logits = victim.logits(point)
            reached = victim.reached(point, goal, logits)
            hits, left = reached.nonzero().squeeze(1), ~reached
            result[rows[hits]] = point[hits]
        return result


def _likely(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The label, and the classes most likely beside it, int64 (N, count)."""
    return logits.scatter(1, labels[:, None], float("inf")).topk(min(count, logits.shape[1])).indices


def _to_boundary(jacobian: Tensor, logits: Tensor, norm: Norm) -> Tensor:
    """The shortest displacement to where the first of the classes (N, c) meets another one, were all linear."""
    normals = (jacobian[:, 1:] - jacobian[:, :1]).flatten(2)
    gaps = (logits[:, 1:] - logits[:, :1]).abs()
    lengths = torch.linalg.vector_norm(normals, 1 if norm == "linf" else 2, dim=2, dtype=torch.float64)
    lengths = lengths.clamp(min=1e-300)
    distance, nearest = (gaps / lengths).min(1, keepdim=True)
    normal = normals.gather(1, nearest[:, :, None].expand(-1, -1, normals.shape[2])).squeeze(1)
    unit = normal.sign() if norm == "linf" else (normal / lengths.gather(1, nearest)).to(normal.dtype)
    step: Tensor = distance.clamp(max=1e30).to(unit.dtype) * unit  # a zero gradient stays zero
    return step.view_as(jacobian[:, 0])


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [DeepFool]
