"""FAB: steps onto the linearized decision boundary that stay close to the image."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from guard import LOSSES, Attack, Cost, Goal, MinimalAttack, Norm, Rng, ThreatModel, Victim, hookimpl
from guard_plugins.attacks.hyperplane import onto_hyperplane

_RADIUS: dict[Norm, float] = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
"""Stands in for epsilon in a restart where there is none; the authors' numbers."""
_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
_STEP = 2
"""Forwards of a step: one with its gradient, one at the new point."""
_LAST = 3
"""Forwards of the search on the line between image and nearest point."""


@dataclass(frozen=True)
class _Task:
    """What is attacked; `task[rows]` takes some of the images."""

    victim: Victim
    images: Tensor
    goal: Goal
    norm: Norm
    num_classes: int

    def __getitem__(self, rows: Tensor) -> "_Task":
        return _Task(self.victim[rows], self.images[rows], self.goal[rows], self.norm, self.num_classes)


@dataclass(frozen=True)
class _Found:
    """The nearest adversarial point of each image so far."""

    points: Tensor
    distance: Tensor
    """(N,): inf where there is none, 0 where the image itself has reached the goal."""
    enough: float
    """An image is done once its distance is below this."""

    def open(self, rows: Tensor, victim: Victim, queries: int) -> Tensor:
        """Which of the images in `rows`, those of the victim, are not done and have queries left, as an index."""
        open_ = self.distance[rows] >= self.enough
        if victim.remaining is not None:
            open_ &= victim.remaining >= queries
        return open_.nonzero().squeeze(1)


class FAB(MinimalAttack):
    """The nearest adversarial image, by steps onto the linearized decision boundary that stay close to the image.

    Each step projects the point and the image on the hyperplane where the linearized logits of two classes meet, inside
    [0, 1], goes a little beyond both and mixes them: the longer the point's own way, the more of the image's. A point
    that crossed the boundary is kept if it is the nearest so far, and pulled back towards the image. The paper's last
    search on the line between image and nearest point is made once, after all runs (AutoAttack leaves it out).

    `targets` = 9 is AutoAttack's FAB-T: one backward a step, towards each of the 9 likeliest wrong classes in turn, any
    error of the model being a success. Untargeted, the nearest of all boundaries is taken, at one backward a class. A
    targeted goal is approached through its own margin. Where an attack may stop at success, an image is done once a
    point within epsilon is found. A restart starts at random, half as far away as epsilon or as the nearest point, if
    there is a nearer one (as in the paper; AutoAttack: half of epsilon).
    """

    name = "fab"
    paper = "Croce, Hein: Minimally distorted adversarial examples with a fast adaptive boundary attack, ICML 2020"

    steps: PositiveInt = 100
    """Steps of each run."""
    restarts: PositiveInt = 1
    """Runs towards each target; the first starts at the image."""
    targets: NonNegativeInt = 0
    """How many of the likeliest wrong classes to aim at in turn; 0 takes the nearest boundary at each step."""
    bias: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest share of the image's own projection in a step (alpha_max in the paper)."""
    overshoot: Annotated[float, Field(ge=1)] = 1.05
    """How far a step goes, in units of the way to the boundary (eta)."""
    backward: Annotated[float, Field(gt=0, le=1)] = 0.9
    """What is left of a perturbation that crossed the boundary (beta)."""

    def cost(self, num_classes: int) -> Cost:
        """A gradient and a look at the new point for each step; what is asked about every image comes on top."""
        targets = min(self.targets, num_classes - 1)
        steps = self.steps * self.restarts * max(targets, 1)
        return Cost(1 + _STEP * steps + 2 + _LAST, steps * (1 if targets else num_classes))

    def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: Norm, rng: Rng) -> Tensor:
        """See `MinimalAttack.nearest`."""
        return self._search(victim, images, goal, norm, rng, math.inf, 0.0).points

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`; where the victim allows it, an image is done with the first point inside the ball."""
        if not victim.drop:
            return super().perturb(victim, images, goal, threat, rng)
        found = self._search(victim, images, goal, threat.norm, rng, threat.epsilon, threat.epsilon)
        inside = (found.distance < threat.epsilon).view(-1, 1, 1, 1)
        return torch.where(inside, found.points, threat.project(found.points, images))

    def _search(
        self, victim: Victim, images: Tensor, goal: Goal, norm: Norm, rng: Rng, epsilon: float, enough: float
    ) -> _Found:
        """All runs, each on the images that are not done."""
        logits = victim.logits(images)
        task = _Task(victim, images, goal, norm, logits.shape[1])
        distance = torch.where(victim.reached(images, goal, logits), 0, math.inf).to(images.dtype)
        found = _Found(images.clone(), distance, max(enough, torch.finfo(images.dtype).tiny))
        everything = torch.arange(len(images), device=images.device)
        for number, aimed in enumerate(self._aims(goal, logits)):
            for restart in range(self.restarts):
                rows = found.open(everything, victim, _STEP)
                if not len(rows):
                    return found
                point = images[rows]
                if restart:
                    reach = found.distance[rows].clamp(max=_RADIUS[norm] if math.isinf(epsilon) else epsilon) / 2
                    stream = rng[rows].fold(number * self.restarts + restart)
                    point = (point + _draw(reach, norm, stream).to(point.dtype)).clamp(0, 1)
                self._run(replace(task, goal=aimed)[rows], point, rows, found)
        rows = found.open(everything, victim, 2 + _LAST)
        rows = rows[found.distance[rows].isfinite()]
        if len(rows):
            _tighten(task[rows], rows, found)
        return found

    def _aims(self, goal: Goal, logits: Tensor) -> Iterator[Goal]:
        if goal.targets is not None or not self.targets:
            yield goal
            return
        others = logits.scatter(1, goal.labels[:, None], -math.inf).argsort(dim=1, descending=True, stable=True)
        for column in range(min(self.targets, logits.shape[1] - 1)):
            yield goal.aim(others[:, column])

    def _run(self, task: _Task, point: Tensor, rows: Tensor, found: _Found) -> None:
        """One run, from `point`, on images that stand in `rows` of what was found."""
        for _ in range(self.steps):
            point = self._step(task, point)
            logits = task.victim.logits(point)  # no gradient: the points that crossed the boundary could not use it
            crossed = task.goal.reached(logits)
            distance = _length((point - task.images).flatten(1), task.norm)
            nearer = (crossed & (distance < found.distance[rows])).nonzero().squeeze(1)
            if len(nearer):
                nearer = nearer[task.victim[nearer].reached(point[nearer], task.goal[nearer], logits[nearer])]
                found.points[rows[nearer]], found.distance[rows[nearer]] = point[nearer], distance[nearer]
            share = torch.where(crossed, self.backward, 1.0).to(point.dtype)
            point = torch.lerp(task.images, point, share.view(-1, 1, 1, 1))
            left = found.open(rows, task.victim, _STEP)
            if len(left) < len(rows):
                rows, point, task = rows[left], point[left], task[left]
                if not len(rows):
                    return

    def _step(self, task: _Task, point: Tensor) -> Tensor:
        """A little beyond the linearized boundary, between what is next to the point and what is next to the image."""
        value, normal = _boundary(task, point)
        both = torch.stack([point, task.images]).flatten(2)
        gain = torch.stack([-value, torch.linalg.vecdot(normal, both[0] - both[1]) - value])
        ways = onto_hyperplane(both, normal, gain, task.norm)
        own, origin = _length(ways, task.norm).clamp(min=1e-8)
        share = (own / (own + origin)).clamp(max=self.bias)[:, None]
        both.add_(ways, alpha=self.overshoot)
        return torch.lerp(both[0], both[1], share).clamp_(0, 1).view_as(point)


def _boundary(task: _Task, point: Tensor) -> tuple[Tensor, Tensor]:
    """How far the class to reach is ahead at the point (N,), and the gradient of that (N, D).

    Without a class to reach: that of all classes whose linearized boundary with the label's is nearest.
    """
    if task.goal.towards is not None:
        gradient, value, _ = task.victim.gradient(point, task.goal, LOSSES["margin"])
        return value, gradient.flatten(1)
    classes = torch.arange(task.num_classes, device=point.device).expand(len(point), -1)
    jacobian, logits = task.victim.jacobian(point, classes)
    rows, labels = torch.arange(len(point), device=point.device), task.goal.labels
    values = logits - logits[rows, labels, None]
    normals = jacobian.flatten(2)
    normals = normals - normals[rows, labels, None]
    away = values.abs() / _length(normals, _DUAL[task.norm]).clamp(min=torch.finfo(values.dtype).tiny)
    nearest = away.scatter(1, labels[:, None], math.inf).argmin(1)
    return values[rows, nearest], normals[rows, nearest]


def _tighten(task: _Task, rows: Tensor, found: _Found) -> None:
    """Draw the points found in `rows` to their images as far as the margin between both, taken as linear, allows."""
    images, points = task.images, found.points[rows]
    near, far = torch.zeros_like(found.distance[rows]), torch.ones_like(found.distance[rows])
    above, logits = task.goal.margin(task.victim.logits(images)), task.victim.logits(points)
    below = task.goal.margin(logits)
    for _ in range(_LAST):
        beyond = 100 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)  # batches of other sizes must agree
        cut = ((above + 2 * beyond) / (above - below).clamp(min=torch.finfo(above.dtype).tiny)).clamp(0, 1)
        share = torch.lerp(near, far, cut)
        trial = torch.lerp(images, points, share.view(-1, 1, 1, 1))
        logits = task.victim.logits(trial)
        margin = task.goal.margin(logits)
        reached = task.victim.reached(trial, task.goal, logits) & (margin <= -beyond)
        near, above = torch.where(reached, near, share), torch.where(reached, above, margin)
        far, below = torch.where(reached, share, far), torch.where(reached, margin, below)
    points = torch.lerp(images, points, far.view(-1, 1, 1, 1))
    found.points[rows], found.distance[rows] = points, _length((points - images).flatten(1), task.norm)


def _length(moved: Tensor, norm: Norm) -> Tensor:
    """The norm of each row (..., D)."""
    if norm == "linf":
        return torch.maximum(moved.amax(-1), -moved.amin(-1))
    return moved.square().sum(-1).sqrt() if norm == "l2" else moved.abs().sum(-1)


def _draw(reach: Tensor, norm: Norm, rng: Rng) -> Tensor:
    """A displacement of length `reach` (N,) for each image, float32 (N, C, H, W)."""
    draw = rng.uniform(-1, 1) if norm == "linf" else rng.normal()
    return draw * (reach / _length(draw.flatten(1), norm)).float().view(-1, 1, 1, 1)


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [FAB]
