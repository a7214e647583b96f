"""Stages: what acts on the images in front of a network, taught where it must learn first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from guard.config import EvaluationConfig
from guard.defense import Defense
from guard.errors import blamed
from guard.evaluation.learning import Learning, Told
from guard.evaluation.network import Network
from guard.evaluation.overlap import Overlap
from guard.evaluation.store import Store
from guard.layers import held
from guard.learned_defense import LearnedDefense
from guard.precision import full_precision
from guard.progress import Progress
from guard.source import Data
from guard.training.lesson import Preparing
from guard.weights import read_note


class Note(Told):
    """What is kept beside what a defense learned."""

    defense: dict[str, Any]
    """Its parameters."""
    model: str | None
    """What it learned in front of; None where that decides nothing."""
    norm: str
    epsilon: float


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
        self._learning = Learning(config, store, device, progress, data, no_train)
        self._done: dict[Path | int, LearnedDefense] = {}

    def ready(self, stage: Defense, network: Network, name: str) -> Defense:
        """The stage as it acts in front of a network, which `name` names.

        Raises InputError where it must learn and may not or cannot, ContractError where it fails at it.
        """
        if not isinstance(stage, LearnedDefense):
            return stage
        place = self._path(stage, network) if stage.must_learn else id(stage)
        if place not in self._done:
            if isinstance(place, Path):
                with self._store.alone(place, self._progress.say):
                    self._done[place] = self._kept(stage, place) or self._taught(stage, network, place, name)
            else:
                self._done[place] = self._learning.given(stage)
        return self._done[place]

    def _kept(self, stage: LearnedDefense, path: Path) -> LearnedDefense | None:
        """With what the store holds; None where it holds nothing, or something damaged."""
        module = self._store.load(path, lambda: self._learning.unfitted(stage, _who(stage), self._config.seed[0]))
        return None if module is None else stage.fitted(module.requires_grad_(False), read_note(path) or "")

    def _taught(self, stage: LearnedDefense, network: Network, path: Path, name: str) -> LearnedDefense:
        who, seed, threat = _who(stage), self._config.seed[0], self._config.threat[0]
        self._learning.permit(who)
        what = f"{who} learning in front of {name}" if stage.against else f"{who} learning"
        images, module = self._learning.images(stage, who), self._learning.unfitted(stage, who, seed)
        lesson = Preparing(stage, network.model, threat, seed, self._config.dtype)
        with held(network.model), full_precision(self._device), blamed(what):
            seconds = self._learning.estimate(stage, module, lesson, images.data, threat)
            self._progress.say(f"{what} (about {max(seconds, 1):.0f} s)")
            course = self._learning.train(stage, module, lesson, images.data, threat, seed=seed, what=what, path=path)
        note = Note(
            defense=stage.model_dump(mode="json"),
            model=name if stage.against else None,
            norm=threat.norm,
            epsilon=threat.epsilon,
            **dict(self._learning.told(stage, images, course, seed)),
        )
        self._learning.keep(module, path, note)
        return stage.fitted(module.requires_grad_(False), note.model_dump_json())

    def _path(self, stage: LearnedDefense, network: Network) -> Path:
        who, against = _who(stage), stage.against
        game = (self._config.threat[0].model_dump_json(),) if against else ()  # what learns of itself knows no threat
        images = self._learning.images(stage, who).key
        return self._learning.path(stage, who, network if against else None, *game, images, self._config.seed[0])


def check_defenses(config: EvaluationConfig, learning: Learning, overlap: Overlap, say: Callable[[str], None]) -> None:
    """Raise InputError where a defense learned, or would learn, on images that are evaluated; say where on a few."""
    members = [member for entry in config.defenses for member in entry.stack.members]
    for stage in {id(member): member for member in members if isinstance(member, LearnedDefense)}.values():
        who = _who(stage)
        known = learning.images(stage, who).prints if stage.must_learn else _prints(stage)
        if known is None:
            say(f"{who} does not say which images it learned on; the evaluated ones may be among them")
        elif shared := overlap.shared(known, who):
            say(f"{who} has {shared} of the evaluated images among those that it learned on")


def _prints(stage: LearnedDefense) -> str | None:
    """Of the images that it learned on, if its note, or its file's, says so."""
    note = stage.note if stage.learned else read_note(Path(str(stage.weights)).expanduser())
    try:
        return Told.model_validate_json(note or "").prints
    except ValidationError:
        return None


def _who(stage: LearnedDefense) -> str:
    return f"defense '{stage.name}'"
