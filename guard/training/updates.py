"""Updates: what changes the weights of a network, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from guard.augmentation import augmented
from guard.defense import Step
from guard.errors import InputError
from guard.recipe import Training
from guard.rng import seeded
from guard.source import Data
from guard.threat import ThreatModel
from guard.training.batches import stream
from guard.training.lesson import Lesson

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Updates:
    """Updates the weights of one network, in every process alike: their gradients are averaged.

    Each update draws from generators of its own, so that none depends on those before it.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        lesson: Lesson,
        training: Training,
        num_classes: int,
        memory: dict[str, Tensor] | None = None,
    ) -> None:
        """`memory`: tensors of the caller's, beside what defenses keep."""
        self._lent = set(memory or {})
        self.memory: dict[str, Tensor] = dict(memory or {})
        self._notes: dict[str, Tensor] = {}
        self._fabric, self._model, self._lesson = fabric, model.train(), lesson
        self._training, self._num_classes = training, num_classes
        self._weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = _optimizer(self._weights, training)
        self._average = None if training.ema is None else _copied(_floats(model))
        if fabric.device.type == "cuda":
            model.to(memory_format=torch.channels_last)

    def update(
        self, batch: Data, of: int, threat: ThreatModel, *, seed: int, number: int, epoch: int, lr: float
    ) -> Tensor:
        """One update of the weights; the loss over this process's images, detached.

        `batch`: this process's part of a batch of `of` images; `number` of the update, `epoch` of it, from 0. All draws
        follow from `seed`, other ones in each process.
        """
        fabric, device = self._fabric, self._fabric.device
        generator = Generator().manual_seed(stream(seed, fabric.global_rank))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        with seeded(stream(seed, fabric.global_rank, 1), device):
            images, targets = self._batch(batch, generator)
            with fabric.autocast():
                adversarial = self._lesson.adversary(self._model, images, targets, threat, generator)

            def objective() -> Tensor:
                with fabric.autocast():
                    return self._lesson.loss(self._model, step.images, step.adversarial, step.targets, generator)

            step = Step(
                model=self._model,
                images=images,
                adversarial=adversarial,
                targets=targets,
                objective=objective,
                threat=threat,
                epoch=epoch,
                epochs=self._training.epochs,
                generator=generator,
                memory=self.memory,
                notes=self._notes,
            )

            def proceed() -> Tensor:
                self._optimizer.zero_grad()
                step.adversarial.grad = None
                loss = objective()
                loss.backward()
                self._step(len(images) / of)
                return loss.detach()

            result = self._lesson.update(step, proceed)
        if self._average is not None:
            decay = min(self._training.ema or 0.0, (1 + number) / (10 + number))  # the first weights soon count little
            for key, value in _floats(self._model).items():
                self._average[key].lerp_(value, 1 - decay)
        return result

    def state(self) -> dict[str, Tensor]:
        """All that later updates depend on, by name, on the CPU."""
        found = {f"model.{key}": value for key, value in self._model.state_dict().items()}
        for number, values in self._optimizer.state_dict()["state"].items():
            kept = {key: value for key, value in values.items() if value is not None}
            found |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in kept.items()}
        found |= {f"average.{key}": value for key, value in (self._average or {}).items()}
        found |= {f"memory.{key}": value for key, value in self.memory.items()}
        found |= {f"notes.{key}": value for key, value in self._notes.items()}
        return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in found.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go back to where `state` was taken."""
        self._model.load_state_dict(_below("model", state))
        kept: dict[int, dict[str, Tensor]] = {}
        for key, value in _below("optimizer", state).items():
            number, _, name = key.partition(".")
            kept.setdefault(int(number), {})[name] = value.clone()
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": kept})
        for key, value in _below("average", state).items():
            assert self._average is not None
            self._average[key].copy_(value)
        memory, notes = _below("memory", state), _below("notes", state)
        for key in self.memory.keys() - memory.keys():
            del self.memory[key]
        for key, value in memory.items():
            if key in self._lent:
                self.memory[key].copy_(value)
            else:
                self.memory[key] = value.to(self._fabric.device)
        self._notes.clear()
        self._notes |= {key: value.to(self._fabric.device) for key, value in notes.items()}

    def noted(self) -> dict[str, float]:
        """The means of what was written down since this was asked last; of this process."""
        means = {name: float(total / count) for name, (total, count) in self._notes.items()}
        self._notes.clear()
        return means

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network with its averaged weights, where they are averaged, else as it is."""
        if self._average is None:
            yield self._model
            return
        own = _copied(_floats(self._model))
        _fill(self._model, self._average)
        try:
            yield self._model
        finally:
            _fill(self._model, own)

    def synchronize(self) -> None:
        """Give every process the first one's network: its running statistics, and weights that differ by rounding."""
        if self._fabric.world_size > 1:
            for value in self._model.state_dict().values():
                value.copy_(self._summed(value if self._fabric.is_global_zero else torch.zeros_like(value)))

    def _batch(self, batch: Data, generator: Generator) -> tuple[Tensor, Tensor]:
        images, targets = batch.floats(), batch.labels
        if images.is_cuda:
            images = images.contiguous(memory_format=torch.channels_last)
        images, targets = augmented(images, targets, self._training.augmentation, generator, self._num_classes)
        if self._lesson.mixes_labels:
            targets = self._soft(targets, images)
        images, targets = self._lesson.augment(images, targets, generator)
        smoothing = self._training.label_smoothing
        if smoothing:
            targets = self._soft(targets, images) * (1 - smoothing) + smoothing / self._num_classes
        return images, targets

    def _soft(self, targets: Tensor, images: Tensor) -> Tensor:
        """Labels as probabilities (N, K), as precise as the images."""
        return F.one_hot(targets, self._num_classes).to(images) if targets.dim() == 1 else targets

    def _step(self, share: float) -> None:
        """Move the weights along their gradient, of which this process has that of its `share` of the batch."""
        if self._fabric.world_size > 1:
            self._average_gradients(share)
        if self._training.clip is not None:
            nn.utils.clip_grad_norm_(self._weights, self._training.clip)
        self._optimizer.step()

    def _average_gradients(self, share: float) -> None:
        """Over all processes. What no process used has no gradient, lest it decay."""
        used = self._summed(torch.tensor([weight.grad is not None for weight in self._weights]).to(self._weights[0]))
        shared = [weight for weight, count in zip(self._weights, used.tolist(), strict=True) if count]
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in shared]
        whole = self._summed(torch.cat([each.flatten() for each in gradients]) * share)
        for weight, part in zip(shared, whole.split([each.numel() for each in gradients]), strict=True):
            weight.grad = part.view_as(weight)

    def _summed(self, values: Tensor) -> Tensor:
        whole = self._fabric.all_reduce(values, reduce_op="sum")
        assert isinstance(whole, Tensor)
        return whole


def _optimizer(weights: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    if not weights:
        raise InputError("the model has no parameters to train. Give one that has, or one that is trained already")
    if training.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=training.lr, weight_decay=training.weight_decay)
    return torch.optim.SGD(weights, lr=training.lr, momentum=0.9, nesterov=True, weight_decay=training.weight_decay)


def _floats(model: nn.Module) -> dict[str, Tensor]:
    """What is averaged: weights and running statistics."""
    return {key: value for key, value in model.state_dict().items() if value.is_floating_point()}


def _copied(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in values.items()}


@torch.no_grad()
def _fill(model: nn.Module, values: dict[str, Tensor]) -> None:
    own = model.state_dict()
    for key, value in values.items():
        own[key].copy_(value)


def _below(part: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What stands under `part.` in a state."""
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
