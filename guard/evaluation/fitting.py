"""Fitting: learned attacks learn here, each once for all that decides it, on training images alone."""

import copy
import math
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from pydantic import ValidationError
from torch import nn

from guard.attack import MinimalAttack
from guard.config import EvaluationConfig, GoalSetting, Targets
from guard.environment import libraries
from guard.errors import ContractError, InputError, NotApplicable, blamed
from guard.evaluation.nearest import unbounded
from guard.evaluation.network import DEFENSE, Network, full_precision
from guard.evaluation.overlap import Overlap
from guard.evaluation.prepare import Workshop
from guard.evaluation.result import Fit
from guard.evaluation.store import Store
from guard.goal import Goal
from guard.keys import UnkeyableError, component_key, data_key, framework_source, key
from guard.learned import LearnedAttack
from guard.progress import Progress
from guard.rng import Rng, seeded
from guard.source import Data
from guard.threat import ThreatModel
from guard.training.fabric import fabric
from guard.training.lesson import Attacking
from guard.training.loop import estimate, train
from guard.training.validation import hold_out
from guard.victim import ACCESS, Victim, held
from guard.weights import load_weights, read_note, save_tensors


@dataclass(frozen=True)
class Job:
    """An attack that is to learn, and against what."""

    attack: LearnedAttack
    label: str
    network: Network
    on: str
    """What a report calls the network."""
    goal: GoalSetting
    threat: ThreatModel
    seed: int

    @property
    def ball(self) -> ThreatModel:
        """What it learns to stay in: nothing, where it looks for the nearest points."""
        return unbounded(self.threat.norm) if isinstance(self.attack, MinimalAttack) else self.threat

    @property
    def place(self) -> tuple[object, ...]:
        """What tells it apart within a run."""
        return id(self.attack), id(self.network), self.goal, self.ball, self.seed


class Fitting:
    """Lets attacks learn, and keeps what they learned."""

    def __init__(
        self,
        config: EvaluationConfig,
        store: Store,
        device: torch.device,
        progress: Progress,
        workshop: Workshop,
        evaluated: Data,
        *,
        no_train: bool,
    ) -> None:
        """`evaluated`: the images that no attack may learn on."""
        self._config, self._store, self._device, self._progress = config, store, device, progress
        self._workshop, self._overlap, self._no_train = workshop, Overlap(evaluated), no_train
        self._dtype = torch.float64 if config.precision == "float64" else torch.float32
        self._keys: dict[tuple[object, ...], str] = {}
        self._done: dict[tuple[object, ...], tuple[LearnedAttack, Fit]] = {}
        self._parts: dict[int | None, Data] = {}

    def announce(self, jobs: Iterable[Job]) -> None:
        """Say what must be learned and about how long it takes. Raises InputError where that is forbidden."""
        told: dict[str, str] = {}
        for job in jobs:
            if _must_learn(job.attack) and _refusal(job) is None and not self._path(job).exists():
                if self._no_train:
                    raise InputError(
                        f"attack '{job.label}' must learn, and --no-train forbids it. Give weights, or allow training"
                    )
                told.setdefault(self._key(job), f"{job.label} against {job.on} (about {self._estimate(job):.0f} s)")
        if told:
            self._progress.say(f"to learn first: {', '.join(told.values())}")

    def fitted(self, job: Job) -> tuple[LearnedAttack, Fit]:
        """The attack with what it learned, and how.

        Raises InputError where it may not learn or has nothing to learn on, NotApplicable where it cannot learn that,
        ContractError where it fails at it.
        """
        if job.place not in self._done:
            refusal = _refusal(job)
            if refusal:
                raise NotApplicable(refusal)
            module, fit = self._given(job) or self._kept(job) or self._learn(job)
            module = module.to(self._device, self._dtype)
            self._done[job.place] = job.attack.fitted(module, fit.model_dump_json()), fit
        return self._done[job.place]

    def _unfitted(self, job: Job) -> nn.Module:
        dataset = self._config.dataset
        with blamed(f"attack '{job.label}'"), seeded(job.seed, self._device):
            return job.attack.unfitted(dataset.num_classes, dataset.image_shape)

    def _given(self, job: Job) -> tuple[nn.Module, Fit] | None:
        """What it has learned already, or a file says; None where it has to learn."""
        if job.attack.learned:
            return copy.deepcopy(job.attack.module), _read(job.attack.note, f"attack '{job.label}'")
        if job.attack.weights is None:
            return None
        module, path = self._unfitted(job), Path(job.attack.weights).expanduser()
        load_weights(module, path)
        return module, _read(read_note(path), f"'{path}'")

    def _kept(self, job: Job) -> tuple[nn.Module, Fit] | None:
        """What the store holds; None where it holds nothing, or something damaged."""
        path = self._path(job)
        if not path.exists():
            return None
        module = self._unfitted(job)
        try:
            load_weights(module, path)
            return module, _read(read_note(path), f"'{path}'")
        except InputError:
            path.unlink(missing_ok=True)
            return None

    def _learn(self, job: Job) -> tuple[nn.Module, Fit]:
        attack, data, recipe, path = job.attack, self._data(job), job.attack.training(), self._path(job)
        module = self._unfitted(job).to(self._device, self._dtype)
        learned, held_out = hold_out(data, recipe.validation, job.seed)
        what = f"attack '{job.label}' learning against {job.on}"
        with held(job.network.model), full_precision(self._device), blamed(what):
            victim, lesson = self._lesson(job)
            course = train(
                module,
                lesson,
                lesson.numbered(data),
                job.ball,
                recipe,
                num_classes=self._config.dataset.num_classes,
                seed=job.seed,
                fabric=fabric(recipe, self._device),
                progress=self._progress,
                what=what,
                folder=path.with_suffix(""),
                judge=lesson.judge,
                memory=lesson.memory,
            )
        broken = int(victim.counts.broken.sum())
        if broken:
            raise ContractError(f"{what} met gradients with NaN or infinity for {broken} of {len(data)} images")
        fit = Fit(
            attack=attack.model_dump(mode="json"),
            model=job.on,
            dataset=self._config.dataset.name,
            images=len(learned),
            held_out=len(held_out),
            shared=self._overlap.shared(data),
            goal=str(job.goal),
            norm=job.threat.norm,
            epsilon=None if isinstance(attack, MinimalAttack) else job.threat.epsilon,
            seed=job.seed,
            forwards=int(victim.counts.forwards.sum()),
            backwards=int(victim.counts.backwards.sum()),
            seconds=sum(epoch.seconds for epoch in course.epochs),
            epochs=tuple(course.epochs),
            kept=course.kept,
        )
        save_tensors(module.state_dict(), path, note=fit.model_dump_json())
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        return module, fit

    def _lesson(self, job: Job) -> tuple[Victim, Attacking]:
        """A victim that is bound to all training images, and the lesson that hands out parts of it."""
        data, shape = self._data(job), self._config.dataset.image_shape
        index, labels = data.index.to(self._device), data.labels.to(self._device)
        blank = torch.zeros((), dtype=self._dtype, device=self._device).expand(len(data), *shape)
        victim = Victim(
            job.network.model,
            blank,
            Rng(job.seed, index, shape, DEFENSE),
            stages=job.network.stages,
            access=job.attack.fit_access,
            drop=False,
            search=job.network.search(data[:4].floats().to(self._device, self._dtype)),
        )
        targets = None if isinstance(job.goal, str) else _targets(job.goal, labels, self._config.dataset.num_classes)
        return victim, Attacking(job.attack, victim, Goal(labels, targets), job.ball, job.seed, self._dtype)

    def _estimate(self, job: Job) -> float:
        """About how long it learns, in seconds; 0 where it fails, of which learning itself will tell."""
        recipe, num_classes = job.attack.training(), self._config.dataset.num_classes
        try:
            with held(job.network.model), full_precision(self._device), blamed(job.label):
                _, lesson = self._lesson(job)
                return estimate(
                    self._unfitted(job).to(self._device, self._dtype),
                    lesson,
                    lesson.numbered(self._data(job)),
                    job.ball,
                    recipe,
                    num_classes=num_classes,
                    fabric=fabric(recipe, self._device),
                )
        except ContractError:
            return 0.0

    def _data(self, job: Job) -> Data:
        """The training images that it learns on. Raises InputError where they are those that are evaluated."""
        size = job.attack.images
        if size not in self._parts:
            data = self._workshop.training_data(f"attack '{job.label}'")[:size]
            self._overlap.refuse(data, f"attack '{job.label}'")
            self._parts[size] = data
        return self._parts[size]

    def _path(self, job: Job) -> Path:
        return self._store.weights(self._key(job))

    def _key(self, job: Job) -> str:
        """Of all that decides what is learned; one of its own where something in it cannot be hashed."""
        if job.place not in self._keys:
            found = uuid4().hex
            if job.network.key is not None:
                with suppress(UnkeyableError):
                    found = key(
                        component_key(job.attack.model_copy(update={"refit": False})),
                        job.attack.training().model_dump_json(),
                        job.network.key,
                        data_key(self._data(job)),
                        str(job.goal),
                        job.ball.model_dump_json(),
                        job.seed,
                        str(self._dtype),
                        framework_source("", "training", "evaluation"),
                        libraries(),
                        self._device.type,
                    )
            self._keys[job.place] = found
        return self._keys[job.place]


def _must_learn(attack: LearnedAttack) -> bool:
    return not attack.learned and attack.weights is None


def _read(note: str | None, what: str) -> Fit:
    """How something was learned. Raises InputError where that is not known."""
    try:
        return Fit.model_validate_json(note or "")
    except ValidationError as error:
        raise InputError(
            f"{what} does not say what it was learned on. Give a file that guard wrote: RUN/attacks/LABEL.safetensors"
        ) from error


def _refusal(job: Job) -> str | None:
    """Why an attack cannot learn that; None where it can."""
    needed = job.attack.fit_access
    if not _must_learn(job.attack):
        return None
    if math.isinf(job.ball.epsilon) and not isinstance(job.attack, MinimalAttack):
        return f"attack '{job.label}' learns inside a ball, and {job.threat} is none. Give a finite epsilon"
    if ACCESS.index(needed) > ACCESS.index(job.network.access):
        return (
            f"attack '{job.label}' needs {needed} to learn, and the model gives {job.network.access} only. "
            f"Use an attack that asks for less"
        )
    if isinstance(job.goal, Targets) and job.goal.targets in ("random", "least-likely"):
        return (
            f"attack '{job.label}' learns one aim for all images, and the goal is {job.goal.targets}. "
            f"Give goal: {{targets: CLASS}}, or next"
        )
    return None


def _targets(goal: Targets, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The target of each training image, int64 (N,)."""
    if isinstance(goal.targets, int):
        return torch.full_like(labels, goal.targets)
    return (labels + 1) % num_classes
