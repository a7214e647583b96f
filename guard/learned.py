"""Learned attacks: what learns on training images once, and then attacks any image without asking a model."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard.attack import Attack, Cost
from guard.defense import Step
from guard.goal import Goal
from guard.layers import placed
from guard.learner import Learner
from guard.rng import Rng
from guard.threat import ThreatModel
from guard.victim import Access, Victim


class LearnedAttack(Learner, Attack):
    """An attack that learns before it attacks. A subclass writes `unfitted`, `objective` and `craft`.

    What learns is a torch module of its own. It is trained through the project's loop, on the training split alone,
    against one model; a training that was killed goes on where it stopped. Afterwards `craft` asks no model anything.
    What it learned lies in RUN/attacks/LABEL.safetensors, which `weights` takes.
    """

    access = "transfer"
    fit_access: ClassVar[Access] = "gradients"
    """The most that it asks of the model while it learns."""

    refit: bool = False
    """Whether it learns anew against each defense. Where not, it learns once, on the undefended model, and attacks all
    defenses with that."""

    @abstractmethod
    def objective(self, step: Step, victim: Victim, goal: Goal) -> Tensor:
        """What is minimised: a scalar of the module `step.model` on the batch `step.images`, which `victim` and `goal`
        are bound to; `step.targets` are the images' numbers among those that it learns on. `step.memory` lasts, and
        `step.note` writes down a figure of the epoch."""

    @abstractmethod
    def craft(self, module: nn.Module, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """A point for each image, which is then projected. The module is in eval mode; nothing keeps a graph."""

    def update(self, step: Step, victim: Victim, goal: Goal, proceed: Callable[[], Tensor]) -> Tensor:
        """One update around `proceed()`, which takes a step down the objective and returns it."""
        return proceed()

    def seen(
        self, module: nn.Module, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng
    ) -> dict[str, Tensor]:
        """What an epoch is judged by, on training images that are held out: values (N,) by name, whose means are kept.
        The epoch with the largest mean of the first one counts. By default which images reach the goal."""
        points = self.points(module, images, goal, threat, rng)
        if self.fit_access != "labels":
            return {"goal reached": goal.reached(victim.logits(points))}
        labels = victim.labels(points)
        return {"goal reached": labels != goal.labels if goal.targets is None else labels == goal.targets}

    def picture(self, module: nn.Module) -> Tensor | None:
        """What was learned as one perturbation (C, H, W) for all images, where it is that; None otherwise."""
        return None

    def points(self, module: nn.Module, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """What `craft` makes with this module, projected onto the ball and [0, 1]."""
        with torch.no_grad():
            module = placed(module, images.device, images.dtype)
            return threat.project(self.craft(module, images, goal, threat, rng), images)

    @property
    def _unlearned(self) -> str:
        return "it has learned nothing yet. Evaluate it, which fits it first; or guard.fit it; or give weights: FILE"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`; no model is asked."""
        return self.points(self.module, images, goal, threat, rng)

    def cost(self, num_classes: int) -> Cost:
        """Nothing, once it has learned."""
        return Cost(0, 0)
