"""The training loop: epochs, validation, the alarm, checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from guard.errors import ContractError, InputError
from guard.progress import Progress
from guard.recipe import Training
from guard.rng import seeded
from guard.source import Data
from guard.threat import ThreatModel
from guard.training.batches import Batches, stream
from guard.training.checkpoint import Checkpoints
from guard.training.course import Course
from guard.training.lesson import Lesson
from guard.training.schedule import learning_rate, warmed
from guard.training.updates import Updates
from guard.training.validation import Accuracies, Seen, collapsed, hold_out, validate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_SAVE = 600.0  # seconds between checkpoints inside an epoch
_EVERY = 100  # batches, after which it is asked whether they are over
_PLAIN = torch.contiguous_format  # channels_last cannot be saved
_KEPT = "kept."  # before the names of weights that are kept, in a checkpoint


Watch = Callable[[Course, dict[str, Tensor]], None]
"""Told after each epoch how the training stands, with the weights that are kept so far, by name."""

Judge = Callable[[nn.Module, Data], Seen]
"""Tells how a module does on held-out images."""


def train(
    model: nn.Module,
    lesson: Lesson,
    data: Data,
    threat: ThreatModel,
    training: Training,
    *,
    num_classes: int,
    seed: int,
    fabric: Fabric,
    progress: Progress,
    what: str,
    folder: Path | None = None,
    watch: Watch = lambda course, weights: None,
    judge: Judge | None = None,
    memory: dict[str, Tensor] | None = None,
) -> Course:
    """Train `model` in place on `data`, against `threat`, and leave it in eval mode. `lesson`: a stack of defenses, or
    what another module than a classifier learns.

    All draws follow from `seed`: held-out images, their order, augmentations, adversaries, dropout. With `folder` a
    training that was killed goes on from its last checkpoint and ends with the same weights; in several processes what
    each had for itself (a defense's memory, running statistics inside an epoch) is then the first one's. The last
    partial batch of an epoch is kept; a single image that is left over joins the batch before it, for BatchNorm needs
    two. `judge` tells how an epoch did, of a classifier `validate` where left out. `memory` are tensors of the caller's
    that change while it trains, and that a training that goes on finds as they were.
    Raises ContractError where the loss is NaN or infinite, InputError where there is nothing to train (on).
    """
    if not len(data):
        raise InputError(f"{what}: there are no training images. Give a training split that has some")
    if fabric.world_size > 1 and training.batch_size < 2 * fabric.world_size:
        raise InputError(
            f"batch_size is {training.batch_size}, of {fabric.world_size} processes together. "
            f"Give at least {2 * fabric.world_size}"
        )
    learned, held = hold_out(data, training.validation, seed)
    return _Run(
        updates=Updates(fabric, model.to(fabric.device), lesson, training, num_classes, memory),
        batches=Batches(learned, training.batch_size, fabric.device, rank=fabric.global_rank, world=fabric.world_size),
        held=held,
        model=model,
        lesson=lesson,
        threat=threat,
        training=training,
        seed=seed,
        fabric=fabric,
        progress=progress,
        what=what,
        checkpoints=None if folder is None else Checkpoints(folder),
        watch=watch,
        judge=judge or partial(validate, threat=threat, seed=seed, device=fabric.device),
    ).run()


def estimate(
    model: nn.Module,
    lesson: Lesson,
    data: Data,
    threat: ThreatModel,
    training: Training,
    *,
    num_classes: int,
    fabric: Fabric,
) -> float:
    """About how many seconds `train` would take: one update of a copy is timed, after one that warms up."""
    batch = data[: training.batch_size]
    size = len(batch)
    if not size:
        return 0.0
    device = fabric.device
    updates = Updates(fabric, copy.deepcopy(model).to(device), lesson, training, num_classes)
    batch = batch[fabric.global_rank :: fabric.world_size]
    batch = Data(batch.pixels().to(device), batch.labels.to(device), batch.index)

    def update(number: int) -> None:
        updates.update(batch, size, threat, seed=number, number=number, epoch=0, lr=training.lr).item()

    update(0)
    start = time.perf_counter()
    update(1)
    return (time.perf_counter() - start) * training.epochs * len(data) / size


@dataclass
class _Run:
    updates: Updates
    batches: Batches
    held: Data
    model: nn.Module
    lesson: Lesson
    threat: ThreatModel
    training: Training
    seed: int
    fabric: Fabric
    progress: Progress
    what: str
    checkpoints: Checkpoints | None
    watch: Watch
    judge: Judge
    course: Course = field(default_factory=Course)
    best: dict[str, Tensor] = field(default_factory=dict)
    """The weights that are kept."""

    def run(self) -> Course:
        self.progress.start(self.what, self.training.epochs * len(self.batches))
        try:
            self._resume()
            if self._number:
                self.progress.advance(self._number)
            while not self.course.over(self.training):
                before = self.updates.state() if self._rolls_back else {}
                self._epoch()
                self._close(before)
        finally:
            self.progress.finish()
        self.model.load_state_dict(self.best)
        self.model.eval()
        return self.course

    @property
    def _rolls_back(self) -> bool:
        """Then the start of an epoch is kept, and a training that was killed goes on from there alone."""
        return self.training.overfitting == "roll-back"

    @property
    def _number(self) -> int:
        """Of the next update, from 0."""
        return self.course.epoch * len(self.batches) + self.course.batch

    def _done(self, number: int) -> float:
        """The share of the training that is over in the middle of an update."""
        return (number + 0.5) / (self.training.epochs * len(self.batches))

    def _rate(self, number: int) -> float:
        """The learning rate of an update."""
        return learning_rate(self.training, self._done(number)) / 2**self.course.returns

    def _epoch(self) -> None:
        """The updates of an epoch that are still to be made."""
        course = self.course
        text = f"{self.what}, epoch {course.epoch + 1} of {self.training.epochs}"
        losses = torch.zeros((), device=self.fabric.device)
        began = saved = time.perf_counter() - course.seconds
        order = stream(self.seed, course.epoch, course.returns)
        for batch, of in self.batches.epoch(order, course.batch):
            number = self._number
            draws = stream(self.seed, number, course.returns)
            threat, lr = warmed(self.threat, self.training, self._done(number)), self._rate(number)
            loss = self.updates.update(batch, of, threat, seed=draws, number=number, epoch=course.epoch, lr=lr)
            losses += loss * len(batch)
            course.batch += 1
            self.progress.advance(1, text)
            now = time.perf_counter()
            course.seconds = now - began
            due = course.batch % _EVERY == 0 and not self._rolls_back
            if due and course.batch < len(self.batches) and self.fabric.broadcast(now - saved > _SAVE):
                self._count(losses)
                self._save()
                saved = now
        self._count(losses)

    def _count(self, losses: Tensor) -> None:
        """Move what the losses of all processes add up to into the course."""
        whole = self.fabric.all_reduce(losses, reduce_op="sum")
        assert isinstance(whole, Tensor)
        self.course.loss += float(whole)
        losses.zero_()

    def _close(self, before: dict[str, Tensor]) -> None:
        """End an epoch: validate, look for overfitting, keep the best weights, save. `before`: its start."""
        course, training, start = self.course, self.training, time.perf_counter()
        loss = course.loss / sum(self.batches.sizes)
        if not math.isfinite(loss):
            raise ContractError(
                f"{self.what}: the loss became {loss} in epoch {course.epoch + 1} of {training.epochs}. "
                f"Lower the learning rate, lr: {training.lr / 10:g} say"
            )
        self.updates.synchronize()
        with self.updates.averaged() as model:
            seen = self._seen(model)
            alarm = collapsed(course.epochs, seen) if self._watchful and isinstance(seen, Accuracies) else None
            if not self.best or (alarm is None and course.leads(seen, training, self.lesson.hardens)):
                own = model.state_dict().items()
                self.best = {key: value.detach().cpu().clone(memory_format=_PLAIN) for key, value in own}
                course.kept = None if alarm else course.epoch + 1
        again = alarm is not None and course.react(alarm, training)
        if alarm:
            self.progress.say(f"{self.what}, {course.events[-1]}")
        if again:
            self.updates.load(before)
            course.restart()
        else:
            course.seconds += time.perf_counter() - start
            course.close(self._rate(self._number - 1), loss, seen, self.updates.noted())
        self._save()
        if self.fabric.is_global_zero and not again:
            self.watch(course, self.best)

    @property
    def _watchful(self) -> bool:
        """Not while the threat grows: a network that has met a part of it only stands one step of it, and no more."""
        begun = self._done(self.course.epoch * len(self.batches))
        return self.lesson.hardens and self.training.overfitting != "ignore" and begun >= self.training.warmup

    def _seen(self, model: nn.Module) -> Seen | None:
        """What the first process sees on the held-out images; None where there are none."""
        if not len(self.held):
            return None
        seen = None
        if self.fabric.is_global_zero:
            with seeded(self.seed, self.fabric.device):
                seen = self.judge(model, self.held)
        return self.fabric.broadcast(seen)

    def _save(self) -> None:
        if self.checkpoints is not None and self.fabric.is_global_zero:
            kept = {_KEPT + key: value for key, value in self.best.items()}
            self.checkpoints.save(self.updates.state() | kept, self.course.dump())

    def _resume(self) -> None:
        found = None
        if self.checkpoints is not None and self.fabric.is_global_zero:
            found = self.checkpoints.load(self.progress.say)
        found = self.fabric.broadcast(found)
        if found is None:
            return
        state, note = found
        kept = [key for key in state if key.startswith(_KEPT)]
        self.best = {key.removeprefix(_KEPT): state.pop(key) for key in kept}
        try:
            self.updates.load(state)
            self.course = Course.of(note)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(
                f"{self.what}: the checkpoint is of another network, or of another version of guard. Remove its folder"
            ) from error
        if self.course.epochs and self.fabric.is_global_zero:
            self.watch(self.course, self.best)  # it may have been killed between its checkpoint and this
