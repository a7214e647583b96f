"""Fitting: learned attacks learn here, each once for all that decides it, on training images alone."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch
from torch import nn

from guard.attack import MinimalAttack
from guard.config import EvaluationConfig
from guard.environment import libraries
from guard.errors import ContractError, InputError, NotApplicable, blamed
from guard.evaluation.job import Job, Note
from guard.evaluation.network import DEFENSE, full_precision
from guard.evaluation.outcome import targets_for
from guard.evaluation.overlap import Overlap, prints
from guard.evaluation.prepare import Workshop
from guard.evaluation.result import Fit
from guard.evaluation.store import Store
from guard.goal import Goal
from guard.keys import UnkeyableError, component_key, data_key, framework_source, key
from guard.layers import held, placed
from guard.learned import LearnedAttack
from guard.progress import Progress
from guard.recipe import Training
from guard.rng import Rng, seeded
from guard.source import Data
from guard.training.fabric import fabric
from guard.training.lesson import Attacking
from guard.training.loop import estimate, train
from guard.training.validation import hold_out
from guard.victim import Victim
from guard.weights import read_note, save_tensors


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
        self._dtype = config.dtype
        self._keys: dict[tuple[object, ...], str] = {}
        self._done: dict[tuple[object, ...], tuple[LearnedAttack, Fit] | ContractError] = {}
        self._parts: dict[int | None, tuple[Data, str]] = {}

    def announce(self, jobs: Iterable[Job]) -> None:
        """Say what must be learned and about how long it takes. Raises InputError where that is forbidden."""
        told: dict[str, str] = {}
        for job in jobs:
            if not job.must_learn or job.refusal or self._path(job).exists() or self._key(job) in told:
                continue
            if self._no_train:
                raise InputError(f"{job.who} must learn, and --no-train forbids it. Give weights, or allow training")
            told[self._key(job)] = f"{job.label} against {job.on} (about {max(self._estimate(job), 1):.0f} s)"
        if told:
            self._progress.say(f"to learn first: {', '.join(told.values())}")

    def fitted(self, job: Job) -> tuple[LearnedAttack, Fit]:
        """The attack with what it learned, and how.

        Raises InputError where it may not learn or has nothing to learn on, NotApplicable where it cannot learn that,
        ContractError where it fails at it.
        """
        if job.place not in self._done:
            if job.refusal:
                raise NotApplicable(job.refusal)
            try:
                given = self._given(job)
                if given is None:
                    with self._store.alone(self._path(job), self._progress.say):
                        given = self._kept(job) or self._learn(job)
                module, note = given
            except ContractError as error:
                self._done[job.place] = error
                raise
            fit = Fit(
                **note.model_dump(exclude={"prints", "shared"}), shared=self._overlap.shared(note.prints, job.who)
            )
            if job.must_learn:  # of those that learn the same each has a name of its own for the model
                fit = fit.model_copy(update={"model": job.on})
            self._done[job.place] = job.attack.fitted(module, note.model_dump_json()), fit
        done = self._done[job.place]
        if isinstance(done, ContractError):
            raise done
        return done

    def _given(self, job: Job) -> tuple[nn.Module, Note] | None:
        """What it has learned already, or a file says; None where it has to learn."""
        if job.must_learn:
            return None
        where, dataset = f"'{job.attack.weights}'" if not job.attack.learned else job.who, self._config.dataset
        attack = job.attack if job.attack.learned else job.attack.loaded(dataset.num_classes, dataset.image_shape)
        return placed(attack.module, self._device, self._dtype), job.read(attack.note, where)

    def _kept(self, job: Job) -> tuple[nn.Module, Note] | None:
        """What the store holds; None where it holds nothing, or something damaged."""
        path = self._path(job)
        module = self._store.load(path, lambda: self._unfitted(job))
        if module is None:
            return None
        try:
            return module, job.read(read_note(path), f"'{path}'")
        except InputError:
            path.unlink(missing_ok=True)
            return None

    def _learn(self, job: Job) -> tuple[nn.Module, Note]:
        data, known = self._data(job)
        recipe, path, module = self._recipe(job), self._path(job), self._unfitted(job)
        learned, held_out = hold_out(data, recipe.validation, job.seed)
        what = f"{job.who} learning against {job.on}"
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
        note = Note(
            attack=job.attack.model_dump(mode="json"),
            model=job.on,
            dataset=self._config.dataset.name,
            images=len(learned),
            held_out=len(held_out),
            shared=0,
            goal=str(job.goal),
            norm=job.threat.norm,
            epsilon=None if isinstance(job.attack, MinimalAttack) else job.threat.epsilon,
            seed=job.seed,
            forwards=int(victim.counts.forwards.sum()),
            backwards=int(victim.counts.backwards.sum()),
            seconds=sum(epoch.seconds for epoch in course.epochs),
            epochs=tuple(course.epochs),
            kept=course.kept,
            prints=known,
        )
        save_tensors(module.state_dict(), path, note=note.model_dump_json())
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        return module, note

    def _lesson(self, job: Job) -> tuple[Victim, Attacking]:
        """A victim that is bound to all training images, and the lesson that hands out parts of it."""
        (data, _), dataset = self._data(job), self._config.dataset
        index, labels = data.index.to(self._device), data.labels.to(self._device)
        blank = torch.zeros((), dtype=self._dtype, device=self._device).expand(len(data), *dataset.image_shape)
        victim = Victim(
            job.network.model,
            blank,
            Rng(job.seed, index, dataset.image_shape, DEFENSE),
            stages=job.network.stages,
            access=job.attack.fit_access,
            drop=False,
            search=job.network.search(data[:4].floats().to(self._device, self._dtype)),
        )
        targets = targets_for(job.goal, blank, labels, index, job.seed, dataset.num_classes)
        return victim, Attacking(job.attack, victim, Goal(labels, targets), job.ball, job.seed, self._dtype)

    def _unfitted(self, job: Job) -> nn.Module:
        dataset = self._config.dataset
        with blamed(job.who), seeded(job.seed, self._device):
            return job.attack.unfitted(dataset.num_classes, dataset.image_shape).to(self._device, self._dtype)

    def _recipe(self, job: Job) -> Training:
        with blamed(job.who):
            return job.attack.training()

    def _estimate(self, job: Job) -> float:
        """About how long it learns, in seconds; 0 where it fails, of which learning itself will tell."""
        data, _ = self._data(job)
        try:
            recipe, module = self._recipe(job), self._unfitted(job)
            with held(job.network.model), full_precision(self._device), blamed(job.who):
                _, lesson = self._lesson(job)
                return estimate(
                    module,
                    lesson,
                    lesson.numbered(data),
                    job.ball,
                    recipe,
                    num_classes=self._config.dataset.num_classes,
                    fabric=fabric(recipe, self._device),
                )
        except ContractError:
            return 0.0

    def _data(self, job: Job) -> tuple[Data, str]:
        """The training images that it learns on, and their prints. Raises InputError where they are evaluated."""
        size = job.attack.images
        if size not in self._parts:
            data = self._workshop.training_data(job.who)
            data = data if size is None else self._config.dataset.sample(data, size, self._config.seed[0])
            known = prints(data)
            self._overlap.shared(known, job.who)
            self._parts[size] = data, known
        return self._parts[size]

    def _path(self, job: Job) -> Path:
        return self._store.weights(self._key(job))

    def _key(self, job: Job) -> str:
        """Of all that decides what is learned; one of its own where something in it cannot be hashed."""
        if job.place not in self._keys:
            found = uuid4().hex
            if job.network.key is not None:
                data, _ = self._data(job)
                with suppress(UnkeyableError):
                    found = key(
                        component_key(job.attack.model_copy(update={"refit": False})),
                        self._recipe(job).model_dump_json(),
                        job.network.key,
                        data_key(data),
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
