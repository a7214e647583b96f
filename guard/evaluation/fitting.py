"""Fitting: learned attacks learn here, each once for all that decides it, on training images alone."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from guard.attack import MinimalAttack
from guard.config import EvaluationConfig
from guard.errors import ContractError, InputError, NotApplicable, blamed
from guard.evaluation.job import Job, Note
from guard.evaluation.learning import Images, Learning
from guard.evaluation.network import DEFENSE
from guard.evaluation.outcome import targets_for
from guard.evaluation.overlap import Overlap
from guard.evaluation.prepare import Workshop
from guard.evaluation.result import Fit
from guard.evaluation.stages import check_defenses
from guard.evaluation.store import Store
from guard.goal import Goal
from guard.layers import held
from guard.learned import LearnedAttack
from guard.precision import full_precision
from guard.progress import Progress
from guard.rng import Rng
from guard.source import Data
from guard.training.lesson import Attacking
from guard.victim import Victim
from guard.weights import read_note


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
        """`evaluated`: the images that nothing may learn on. Raises InputError where a defense does."""
        self._config, self._store, self._device, self._progress = config, store, device, progress
        self._learning = Learning(config, store, device, progress, workshop.training_data, no_train)
        self._overlap, self._dtype = Overlap(evaluated), config.dtype
        self._paths: dict[tuple[object, ...], Path] = {}
        self._done: dict[tuple[object, ...], tuple[LearnedAttack, Fit] | ContractError] = {}
        check_defenses(config, self._learning, self._overlap, progress.say)

    def announce(self, jobs: Iterable[Job]) -> None:
        """Say what must be learned and about how long it takes. Raises InputError where that is forbidden."""
        told: dict[Path, str] = {}
        for job in jobs:
            if not job.must_learn or job.refusal or self._path(job).exists() or self._path(job) in told:
                continue
            self._learning.permit(job.who)
            told[self._path(job)] = f"{job.label} against {job.on} (about {max(self._estimate(job), 1):.0f} s)"
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
        where = job.who if job.attack.learned else f"'{job.attack.weights}'"
        attack = self._learning.given(job.attack)
        return attack.module, job.read(attack.note, where)

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
        images, path, module = self._images(job), self._path(job), self._unfitted(job)
        what = f"{job.who} learning against {job.on}"
        with held(job.network.model), full_precision(self._device), blamed(what):
            victim, lesson = self._lesson(job)
            course = self._learning.train(
                job.attack,
                module,
                lesson,
                lesson.numbered(images.data),
                job.ball,
                seed=job.seed,
                what=what,
                path=path,
                memory=lesson.memory,
            )
        broken = int(victim.counts.broken.sum())
        if broken:
            raise ContractError(f"{what} met gradients with NaN or infinity for {broken} of {len(images.data)} images")
        note = Note(
            attack=job.attack.model_dump(mode="json"),
            model=job.on,
            shared=0,
            goal=str(job.goal),
            norm=job.threat.norm,
            epsilon=None if isinstance(job.attack, MinimalAttack) else job.threat.epsilon,
            forwards=int(victim.counts.forwards.sum()),
            backwards=int(victim.counts.backwards.sum()),
            **dict(self._learning.told(job.attack, images, course, job.seed)),
        )
        self._learning.keep(module, path, note)
        return module, note

    def _lesson(self, job: Job) -> tuple[Victim, Attacking]:
        """A victim that is bound to all training images, and the lesson that hands out parts of it."""
        data, dataset = self._images(job).data, self._config.dataset
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
        return self._learning.unfitted(job.attack, job.who, job.seed)

    def _estimate(self, job: Job) -> float:
        """About how long it learns, in seconds; 0 where it fails, of which learning itself will tell."""
        images = self._images(job)
        try:
            module = self._unfitted(job)
            with held(job.network.model), full_precision(self._device), blamed(job.who):
                _, lesson = self._lesson(job)
                return self._learning.estimate(job.attack, module, lesson, lesson.numbered(images.data), job.ball)
        except ContractError:
            return 0.0

    def _images(self, job: Job) -> Images:
        """What it learns on. Raises InputError where those are evaluated."""
        images = self._learning.images(job.attack, job.who)
        self._overlap.shared(images.prints, job.who)
        return images

    def _path(self, job: Job) -> Path:
        if job.place not in self._paths:
            attack, images = job.attack.model_copy(update={"refit": False}), self._images(job).key
            game = images, str(job.goal), job.ball.model_dump_json(), job.seed
            self._paths[job.place] = self._learning.path(attack, job.who, job.network, *game)
        return self._paths[job.place]
