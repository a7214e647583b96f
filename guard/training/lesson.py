"""Lessons: what the training loop teaches a module. A stack of defenses is one."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from guard.defense import Step
from guard.goal import Goal
from guard.layers import held as holding
from guard.learned import LearnedAttack
from guard.learned_defense import LearnedDefense
from guard.rng import Rng
from guard.source import Data
from guard.threat import ThreatModel
from guard.victim import Victim

_BATCH = 250


class Lesson(Protocol):
    """What happens to a batch; see the methods of `Defense` of the same names."""

    @property
    def hardens(self) -> bool:
        """Whether what it teaches is robustness: then the most robust epoch counts, and overfitting is watched for."""

    @property
    def mixes_labels(self) -> bool:
        """Whether `augment` wants probabilities for labels."""

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Change a batch."""

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """The adversarial images that join it."""

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        """What is minimised, a scalar."""

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        """One update around `proceed()`."""


class _Beside:
    """What learns beside a network: of images as precise as that, which nobody attacks."""

    hardens = mixes_labels = False

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images as precise as the network."""
        return images.to(self._dtype), targets

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """None."""
        return images


class Attacking(_Beside):
    """How a learned attack learns: the training images' numbers stand for their labels, so that each batch meets the
    part of the victim and of the goal that belongs to it."""

    def __init__(
        self, attack: LearnedAttack, victim: Victim, goal: Goal, threat: ThreatModel, seed: int, dtype: torch.dtype
    ) -> None:
        """`victim` and `goal` are bound to all training images; `dtype` is the victim's."""
        super().__init__(dtype)
        self._attack, self._victim, self._goal, self._threat, self._seed = attack, victim, goal, threat, seed
        self._now: tuple[Step, Victim, Goal] | None = None

    @property
    def memory(self) -> dict[str, Tensor]:
        """What the victim has been asked, and what it drew, which is saved with the training."""
        return self._victim.memory

    @staticmethod
    def numbered(data: Data) -> Data:
        """The images, each with its number for a label."""
        return Data(data.images, torch.arange(len(data)), data.index)

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        """The attack's objective."""
        assert self._now is not None
        return self._attack.objective(*self._now)

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        """The attack's."""
        self._now = step, self._victim[step.targets], self._goal[step.targets]
        return self._attack.update(*self._now, proceed)

    def judge(self, module: nn.Module, held: Data) -> dict[str, float]:
        """The means of what the attack sees on held-out images."""
        sums: dict[str, float] = {}
        for part in held.batches(_BATCH):
            rows = part.labels.to(self._goal.labels.device)
            images = part.floats().to(rows.device, self._dtype)
            rng = Rng(self._seed, part.index.to(rows.device), tuple(images.shape[1:]))
            with holding(module):
                seen = self._attack.seen(module, self._victim[rows], images, self._goal[rows], self._threat, rng)
            _add(sums, seen)
        return {name: total / len(held) for name, total in sums.items()}


class Preparing(_Beside):
    """How a learned defense learns, in front of a model."""

    def __init__(
        self, defense: LearnedDefense, model: nn.Module, threat: ThreatModel, seed: int, dtype: torch.dtype
    ) -> None:
        """`dtype` is the model's."""
        super().__init__(dtype)
        self._defense, self._model, self._threat, self._seed = defense, model, threat, seed
        self._now: Step | None = None

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        """The defense's objective."""
        assert self._now is not None
        return self._defense.objective(self._now, self._model)

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        """A step down the objective."""
        self._now = step
        return proceed()

    def judge(self, module: nn.Module, held: Data) -> dict[str, float]:
        """The means of what the defense sees on held-out images."""
        device, generator = next(module.parameters()).device, Generator().manual_seed(self._seed)
        sums: dict[str, float] = {}
        for part in held.batches(_BATCH):
            images, labels = part.floats().to(device, self._dtype), part.labels.to(device)
            with holding(module):
                seen = self._defense.seen(module, self._model, images, labels, self._threat, generator)
            _add(sums, seen)
        return {name: total / len(held) for name, total in sums.items()}


def _add(sums: dict[str, float], seen: dict[str, Tensor]) -> None:
    """Add up what each image shows, by name."""
    for name, values in seen.items():
        sums[name] = sums.get(name, 0.0) + float(values.double().sum())
