"""Learned attacks: what learns on training images once, and then attacks any image without asking a model."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Self

import torch
from pydantic import PositiveFloat, PositiveInt, PrivateAttr
from torch import Tensor, nn

from guard.attack import Attack, Cost
from guard.defense import Step
from guard.errors import ContractError
from guard.goal import Goal
from guard.keys import key
from guard.layers import placed
from guard.recipe import Training
from guard.rng import Rng, seeded
from guard.threat import ThreatModel
from guard.victim import Access, Victim
from guard.weights import load_weights, read_note, save_tensors


class LearnedAttack(Attack):
    """An attack that learns before it attacks. A subclass writes `unfitted`, `objective` and `craft`.

    What learns is a torch module of its own. It is trained through the project's loop, on the training split alone,
    against one model; a training that was killed goes on where it stopped. Afterwards `craft` asks no model anything.
    """

    access = "transfer"
    fit_access: ClassVar[Access] = "gradients"
    """The most that it asks of the model while it learns."""

    epochs: PositiveInt = 10
    """Passes over the images that it learns on."""
    batch_size: PositiveInt = 128
    """Images per update."""
    lr: PositiveFloat = 1e-3
    """The largest learning rate."""
    images: PositiveInt | None = None
    """It learns on the first so many images of the training split; on all of them where left out."""
    refit: bool = False
    """Whether it learns anew against each defense. Where not, it learns once, on the undefended model, and attacks all
    defenses with that."""
    weights: str | None = None
    """A file with what it learned in an earlier run (RUN/attacks/LABEL.safetensors); nothing is learned then."""

    _module: nn.Module | None = PrivateAttr(default=None)
    _note: str = PrivateAttr(default="")

    @abstractmethod
    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """The module before it has learned; `image_shape` is (C, H, W). Torch's own generators are seeded."""

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

    def training(self) -> Training:
        """How the module is trained: by Adam at a constant rate, by default."""
        return Training(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            optimizer="adamw",
            weight_decay=0,
            schedule="constant",
        )

    def points(self, module: nn.Module, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """What `craft` makes with this module, projected onto the ball and [0, 1]."""
        with torch.no_grad():
            module = placed(module, images.device, images.dtype)
            return threat.project(self.craft(module, images, goal, threat, rng), images)

    def fitted(self, module: nn.Module, note: str = "") -> Self:
        """This attack with a module that has learned; `note`: how, as JSON."""
        attack = self.model_copy()
        attack._module, attack._note = module.eval(), note
        return attack

    def loaded(self, num_classes: int, image_shape: tuple[int, int, int]) -> Self:
        """This attack with what the file `weights` says it learned. Raises InputError."""
        path = Path(str(self.weights)).expanduser()
        with seeded(0, torch.device("cpu")):
            module = self.unfitted(num_classes, image_shape)
        load_weights(module, path)
        return self.fitted(module, read_note(path) or "")

    @property
    def learned(self) -> bool:
        """Whether it is ready to attack."""
        return self._module is not None

    @property
    def module(self) -> nn.Module:
        """What has learned. Raises ContractError where nothing has yet."""
        if self._module is None:
            raise ContractError(
                "it has learned nothing yet. Evaluate it, which fits it first; or guard.fit it; or give weights: FILE"
            )
        return self._module

    @property
    def note(self) -> str:
        """How it learned, as JSON."""
        return self._note

    def save(self, path: str | Path) -> None:
        """Write what it learned, and how, to a .safetensors file, which `weights` takes."""
        save_tensors(self.module.state_dict(), path, note=self._note)

    def fingerprint(self) -> str:
        """What it learned."""
        return "" if self._module is None else key(self._module.state_dict())

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`; no model is asked."""
        return self.points(self.module, images, goal, threat, rng)

    def cost(self, num_classes: int) -> Cost:
        """Nothing, once it has learned."""
        return Cost(0, 0)
