"""Stages: what acts on the images in front of a network, taught where it must learn first."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch
from torch import nn

from guard.config import EvaluationConfig
from guard.defense import Defense
from guard.environment import libraries
from guard.errors import ContractError, InputError, blamed
from guard.evaluation.network import Network, full_precision
from guard.evaluation.store import Store
from guard.keys import UnkeyableError, component_key, data_key, framework_source, key
from guard.layers import held, placed
from guard.learned_defense import LearnedDefense
from guard.progress import Progress
from guard.rng import seeded
from guard.source import Data
from guard.training.fabric import fabric
from guard.training.lesson import Preparing
from guard.training.loop import estimate, train
from guard.weights import save_tensors


class Stages:
    """Teaches the learned defenses of an evaluation, each once."""

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
        self._done: dict[str, LearnedDefense] = {}

    def ready(self, stage: Defense, network: Network, name: str) -> Defense:
        """The stage as it acts in front of a network, which `name` names.

        Raises InputError where it must learn and may not or cannot, ContractError where it fails at it.
        """
        if not isinstance(stage, LearnedDefense):
            return stage
        if stage.learned:
            return stage.fitted(placed(stage.module, self._device, self._config.dtype), stage.note)
        dataset = self._config.dataset
        if stage.weights is not None:
            loaded = stage.loaded(dataset.num_classes, dataset.image_shape)
            module = placed(loaded.module.requires_grad_(False), self._device, self._config.dtype)
            return loaded.fitted(module, loaded.note)
        place = self._key(stage, network)
        if place not in self._done:
            path = self._store.weights(place)
            with self._store.alone(path, self._progress.say):
                kept = self._store.load(path, lambda: self._unfitted(stage))
                module = kept or self._taught(stage, network, path, name)
            self._done[place] = stage.fitted(module.requires_grad_(False))
        return self._done[place]

    def _taught(self, stage: LearnedDefense, network: Network, path: Path, name: str) -> nn.Module:
        who = f"defense '{stage.name}'"
        if self._no_train:
            raise InputError(f"{who} must learn, and --no-train forbids it. Give weights, or allow training")
        what = f"{who} learning in front of {name}" if stage.against else f"{who} learning"
        data, module, recipe, seed = self._images(stage), self._unfitted(stage), stage.training(), self._config.seed[0]
        threat = self._config.threat[0]
        lesson = Preparing(stage, network.model, threat, seed, self._config.dtype)
        settings = {"num_classes": self._config.dataset.num_classes, "fabric": fabric(recipe, self._device)}
        with held(network.model), full_precision(self._device), blamed(what):
            seconds = estimate(module, lesson, data, threat, recipe, **settings)  # type: ignore[arg-type]
            self._progress.say(f"{what} (about {max(seconds, 1):.0f} s)")
            course = train(
                module,
                lesson,
                data,
                threat,
                recipe,
                seed=seed,
                progress=self._progress,
                what=what,
                folder=path.with_suffix(""),
                judge=lesson.judge,
                **settings,  # type: ignore[arg-type]
            )
            if course.kept is None:
                raise ContractError(f"{what}: {course.epochs[-1].events[-1]}. Train it otherwise")
        save_tensors(module.state_dict(), path)
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        return module

    def _unfitted(self, stage: LearnedDefense) -> nn.Module:
        dataset = self._config.dataset
        with blamed(f"defense '{stage.name}'"), seeded(self._config.seed[0], self._device):
            return stage.unfitted(dataset.num_classes, dataset.image_shape).to(self._device, self._config.dtype)

    def _images(self, stage: LearnedDefense) -> Data:
        data = self._data(f"defense '{stage.name}'")
        return data if stage.images is None else self._config.dataset.sample(data, stage.images, self._config.seed[0])

    def _key(self, stage: LearnedDefense, network: Network) -> str:
        """Of all that decides what it learns; one of its own where something in it cannot be hashed."""
        if not stage.against or network.key is not None:
            with suppress(UnkeyableError):
                return key(
                    component_key(stage),
                    stage.training().model_dump_json(),
                    network.key if stage.against else None,
                    self._config.threat[0].model_dump_json(),
                    data_key(self._images(stage)),
                    self._config.seed[0],
                    str(self._config.dtype),
                    framework_source("", "training", "evaluation"),
                    libraries(),
                    self._device.type,
                )
        return uuid4().hex
