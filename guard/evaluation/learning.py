"""Learning: what attacks and defenses that learn have in common: images, a module, its training, its file."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from guard.config import EvaluationConfig
from guard.environment import libraries
from guard.errors import InputError, blamed
from guard.evaluation.network import Network
from guard.evaluation.overlap import prints
from guard.evaluation.store import Store
from guard.keys import UnkeyableError, component_key, data_key, framework_source, key
from guard.layers import placed
from guard.learner import Learner
from guard.progress import Progress
from guard.rng import seeded
from guard.source import Data
from guard.threat import ThreatModel
from guard.training.course import Course
from guard.training.fabric import fabric
from guard.training.lesson import Attacking, Preparing
from guard.training.loop import estimate, train
from guard.training.record import Epoch
from guard.training.validation import hold_out
from guard.weights import save_tensors

L = TypeVar("L", bound=Learner)


class Told(BaseModel):
    """What is kept beside whatever learned."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="strings")

    dataset: str
    """On the training split of which it learned."""
    images: int
    """That it learned on."""
    held_out: int
    """Training images by which its best epoch was chosen."""
    seed: int
    seconds: float
    epochs: tuple[Epoch, ...]
    kept: int | None
    """The epoch whose weights it acts with."""
    prints: str
    """Of the images that it learned on: see `Overlap`."""


@dataclass(frozen=True)
class Images:
    """Training images, and what tells them from others."""

    data: Data

    @cached_property
    def prints(self) -> str:
        """See `prints`."""
        return prints(self.data)

    @cached_property
    def key(self) -> str:
        """See `data_key`."""
        return data_key(self.data)


class Learning:
    """Lets components learn. In errors `who` is the one that does."""

    def __init__(
        self,
        config: EvaluationConfig,
        store: Store,
        device: torch.device,
        progress: Progress,
        data: Callable[[str], Data],
        no_train: bool,
    ) -> None:
        """`data` gives the training images, to whoever is named."""
        self._config, self._store, self._device, self._progress = config, store, device, progress
        self._data, self._no_train = data, no_train
        self._images: dict[int | None, Images] = {}

    def permit(self, who: str) -> None:
        """Raise InputError where nothing may learn."""
        if self._no_train:
            raise InputError(f"{who} must learn, and --no-train forbids it. Give weights, or allow training")

    def images(self, learner: Learner, who: str) -> Images:
        """What it learns on. Raises InputError where there are no training images."""
        size = learner.images
        if size not in self._images:
            data = self._data(who)
            self._images[size] = Images(
                data if size is None else self._config.dataset.sample(data, size, self._config.seed[0])
            )
        return self._images[size]

    def unfitted(self, learner: Learner, who: str, seed: int) -> nn.Module:
        """Its module before it has learned, on the device. Raises ContractError."""
        dataset = self._config.dataset
        with blamed(who), seeded(seed, self._device):
            return learner.unfitted(dataset.num_classes, dataset.image_shape).to(self._device, self._config.dtype)

    def given(self, learner: L) -> L:
        """What has learned before, or what a file says it learned, on the device. Raises InputError."""
        if not learner.learned:
            learner = learner.loaded(self._config.dataset.num_classes, self._config.dataset.image_shape)
            learner.module.requires_grad_(False)
        return learner.fitted(placed(learner.module, self._device, self._config.dtype), learner.note)

    def path(self, learner: Learner, who: str, network: Network | None, *game: object) -> Path:
        """Where the store keeps what it learns: of all that decides that, with `network`, or with any, and this `game`.

        A place of its own where something in it cannot be hashed. Raises ContractError.
        """
        found = uuid4().hex
        with blamed(who):
            recipe = learner.training()
        if network is None or network.key is not None:
            with suppress(UnkeyableError):
                found = key(
                    component_key(learner),
                    recipe.model_dump_json(),
                    None if network is None else network.key,
                    *game,
                    str(self._config.dtype),
                    framework_source("", "training", "evaluation"),
                    libraries(),
                    self._device.type,
                )
        return self._store.weights(found)

    def estimate(
        self, learner: Learner, module: nn.Module, lesson: Attacking | Preparing, data: Data, threat: ThreatModel
    ) -> float:
        """About how many seconds `train` would take."""
        recipe, classes = learner.training(), self._config.dataset.num_classes
        parallel = fabric(recipe, self._device)
        return estimate(module, lesson, data, threat, recipe, num_classes=classes, fabric=parallel)

    def train(
        self,
        learner: Learner,
        module: nn.Module,
        lesson: Attacking | Preparing,
        data: Data,
        threat: ThreatModel,
        *,
        seed: int,
        what: str,
        path: Path,
        memory: dict[str, Tensor] | None = None,
    ) -> Course:
        """Teach the module; where that was killed it goes on. Raises ContractError where it fails."""
        recipe = learner.training()
        return train(
            module,
            lesson,
            data,
            threat,
            recipe,
            num_classes=self._config.dataset.num_classes,
            seed=seed,
            fabric=fabric(recipe, self._device),
            progress=self._progress,
            what=what,
            folder=path.with_suffix(""),
            judge=lesson.judge,
            memory=memory,
        )

    def told(self, learner: Learner, images: Images, course: Course, seed: int) -> Told:
        """How it learned."""
        learned, held_out = hold_out(images.data, learner.training().validation, seed)
        return Told(
            dataset=self._config.dataset.name,
            images=len(learned),
            held_out=len(held_out),
            seed=seed,
            seconds=sum(epoch.seconds for epoch in course.epochs),
            epochs=tuple(course.epochs),
            kept=course.kept,
            prints=images.prints,
        )

    def keep(self, module: nn.Module, path: Path, note: BaseModel) -> None:
        """Write what was learned, and how, into the store, in place of what a training that is killed goes on from."""
        save_tensors(module.state_dict(), path, note=note.model_dump_json())
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
