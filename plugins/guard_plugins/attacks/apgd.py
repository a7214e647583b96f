"""APGD: a step size that each image sets for itself."""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from guard import (
    LOSSES,
    Attack,
    Cost,
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
from guard_plugins.attacks.apgd_l1 import first_sparse, judge_sparsity, sparse_step
from guard_plugins.attacks.towards_each import cost_towards_each, perturb_towards_each


class APGD(IterativeAttack):
    """PGD with momentum whose step is halved, for each image on its own, when its loss stops rising.

    Steps start 2 epsilon long. At checkpoints (22 % of the steps, then at gaps that shrink by 3 % to 6 %) an image
    halves its step and goes on from its best point if at most three in four of the steps since the last checkpoint
    raised its loss, or if its best loss is what it was there and the step was not halved there. With `targets` it is
    APGD-T: one run towards each of the classes that the model finds likeliest on the clean image. Under a targeted goal
    the goal's target is the only class. For l1 it is APGD-L1 (Croce and Hein: Mind the box, ICML 2021), without the
    larger epsilons that AutoAttack begins with there.

    Of the points whose gradient it took, it returns the one of highest loss; where images are dropped at success, an
    image that was not gets the end of its last step, which nothing has judged before. So `steps` gradients make
    `steps` moves, where the authors' code takes one gradient more. That code compares the loss of the first step with
    0; here, as in the paper, with the loss of the start.
    """

    name = "apgd"
    paper = (
        "Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free "
        "attacks, ICML 2020"
    )

    steps: PositiveInt = 100
    """Number of gradient steps of a run."""
    loss: Literal["cross-entropy", "dlr", "margin"] | None = None
    """What the steps increase; where left out, cross-entropy, or with `targets` dlr. With fewer than 4 classes (3 where
    it aims at none) the margin stands in for dlr."""
    targets: NonNegativeInt = 0
    """How many wrong classes to aim at in turn, the likeliest first (all where there are fewer); 0 aims at none."""

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`. Raises InputError where epsilon is inf."""
        if math.isinf(threat.epsilon):
            raise InputError("epsilon is inf: attack 'apgd' takes steps of that length. Give a finite epsilon")
        if not self.targets or goal.targets is not None:
            return super().perturb(victim, images, goal, threat, rng)
        return perturb_towards_each(self, victim, images, goal, threat, rng, self.targets)

    def cost(self, num_classes: int) -> Cost | None:
        """A forward and a backward for each step, a forward between runs, and with `targets` one to rank classes."""
        return cost_towards_each(self, num_classes, self.targets) if self.targets else super().cost(num_classes)

    def start(
        self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
    ) -> tuple[Tensor, Memory]:
        """A random direction, scaled to the border of the ball (linf, l2); for l1 a normal draw, projected."""
        draw = (rng.uniform(-1, 1) if threat.norm == "linf" else rng.normal()).to(images.dtype)
        if threat.norm != "l1":
            order = math.inf if threat.norm == "linf" else 2
            length = torch.linalg.vector_norm(draw.flatten(1), order, dim=1).clamp(min=torch.finfo(draw.dtype).tiny)
            draw *= (threat.epsilon / length).view(-1, 1, 1, 1)
        point = threat.project(images + draw, images)
        memory = {
            "best": point.clone(),
            "best_gradient": torch.zeros_like(point),
            "gradient": torch.empty_like(point),
            "best_loss": images.new_full((len(images),), -math.inf),
        }
        return point, memory | (first_sparse(images, threat) if threat.norm == "l1" else _first(point, threat))

    def gradient(self, victim: Victim, point: Tensor, goal: Goal, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Of the chosen loss."""
        return victim.gradient(point, goal, LOSSES[self.loss or ("dlr" if self.targets else "cross-entropy")])

    def move(self, now: Now, memory: Memory) -> Tensor:
        """Note the best point, judge the step size at a checkpoint, and make one step."""
        point, gradient = now.point, memory["gradient"].copy_(now.gradient)
        better = now.loss > memory["best_loss"]
        memory["best_loss"] = torch.where(better, now.loss, memory["best_loss"])
        weight = better.to(point.dtype).view(-1, 1, 1, 1)
        memory["best"].lerp_(point, weight)  # in place and exact at 0 and 1; `where` takes ten times as long
        memory["best_gradient"].lerp_(gradient, weight)
        sparse = now.threat.norm == "l1"
        stalled = judge_sparsity(now, memory, self.steps) if sparse else judge_progress(now, memory, self.steps)
        if stalled is not None:
            rows = stalled.view(-1, 1, 1, 1)
            point = torch.where(rows, memory["best"], point)
            gradient = torch.where(rows, memory["best_gradient"], gradient)
        if sparse:
            return point + sparse_step(gradient, memory)
        before, memory["before"] = memory["before"], point
        aim = _aim(point, gradient, now, memory["size"])
        return aim if now.step == 0 else aim.mul_(0.75).add_(point, alpha=0.5).sub_(before, alpha=0.25)

    def final(self, point: Tensor, memory: Memory) -> Tensor:
        """The evaluated point of highest loss."""
        return memory["best"]


@lru_cache
def checkpoints(steps: int) -> dict[int, int]:
    """The number of each step at which step sizes are judged, with how many steps lie since the last such one."""
    gap, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, at = {}, gap
    while at < steps:
        found[at] = gap
        gap = max(gap - shrink, least)
        at += gap
    return found


def _first(point: Tensor, threat: ThreatModel) -> Memory:
    """What linf and l2 carry along besides the best point; one value per image, but for the point before."""
    size = point.new_full((len(point),), 2 * threat.epsilon)
    return {
        "before": point,
        "size": size,
        "loss": torch.full_like(size, math.inf),
        "rises": torch.zeros_like(size),
        "judged": torch.full_like(size, -math.inf),
        "halved": torch.ones_like(size, dtype=torch.bool),
    }


def _aim(point: Tensor, gradient: Tensor, now: Now, size: Tensor) -> Tensor:
    """The end of a step without momentum, in the ball; linf overwrites `gradient`, as fresh memory costs more than the
    arithmetic."""
    threat, images = now.threat, now.images
    if threat.norm == "l2":
        return threat.project(point + threat.steepest_ascent(gradient, size, point), images)
    torch.addcmul(point, gradient.sign_(), size.view(-1, 1, 1, 1), out=gradient)
    return gradient.sub_(images).clamp_(-threat.epsilon, threat.epsilon).add_(images).clamp_(0, 1)


def judge_progress(now: Now, memory: Memory, steps: int) -> Tensor | None:
    """At a checkpoint, halve the steps of the images that have stalled, and say which; they go on from their best."""
    memory["rises"] += now.loss > memory["loss"]
    memory["loss"], best = now.loss, memory["best_loss"]
    gap = checkpoints(steps).get(now.step)
    if gap is None:
        return None
    stalled = (memory["rises"] <= 0.75 * gap) | (~memory["halved"] & (memory["judged"] >= best))
    memory["size"] = torch.where(stalled, memory["size"] / 2, memory["size"])
    memory["rises"] = torch.zeros_like(memory["rises"])
    memory["halved"], memory["judged"] = stalled, best
    return stalled


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [APGD]
