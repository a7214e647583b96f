"""The training loop."""

import copy
import time

import torch
from torch import Generator, Tensor, nn

from guard.config import Training
from guard.defense import Stack, Step
from guard.errors import ContractError, InputError
from guard.progress import Progress
from guard.rng import seeded
from guard.source import Data
from guard.threat import ThreatModel

_RISE = 0.4  # share of the updates over which a cyclic learning rate goes up


def train(
    model: nn.Module,
    defense: Stack,
    data: Data,
    threat: ThreatModel,
    training: Training,
    *,
    seed: int,
    device: torch.device,
    progress: Progress,
    what: str,
) -> None:
    """Train `model` in place on `data` under `defense`, against `threat`, and leave it in eval mode.

    All draws follow from `seed`: the order of the images, augmentations, adversaries, dropout. The last partial batch
    of an epoch is kept; a single image that is left over joins the batch before it, for BatchNorm needs two.
    Raises ContractError where the loss is NaN or infinite, InputError where there is nothing to train (on).
    """
    sizes = _batch_sizes(len(data), training.batch_size)
    if not sizes:
        raise InputError(f"{what}: there are no training images. Give a training split that has some")
    total = training.epochs * len(sizes)
    with seeded(seed, device):
        updates = _Updates(model.to(device), defense, threat, training, device, seed)
        progress.start(what, total)
        try:
            for epoch in range(training.epochs):
                loss = torch.zeros((), device=device)
                for number, rows in enumerate(torch.randperm(len(data), generator=updates.generator).split(sizes)):
                    loss += updates.update(data[rows], (epoch * len(sizes) + number + 0.5) / total)
                    progress.advance(1, f"{what}, epoch {epoch + 1} of {training.epochs}")
                if not loss.isfinite():
                    raise ContractError(
                        f"{what}: the loss became {float(loss)} in epoch {epoch + 1} of {training.epochs}. "
                        f"Lower the learning rate: training: {{lr: {training.lr / 10:g}}}"
                    )
        finally:
            progress.finish()
    model.eval()


def estimate(
    model: nn.Module, defense: Stack, data: Data, threat: ThreatModel, training: Training, device: torch.device
) -> float:
    """About how many seconds `train` would take: one update of a copy is timed, after one that warms up."""
    batch = data[: training.batch_size]
    if not len(batch):
        return 0.0
    with seeded(0, device):
        updates = _Updates(copy.deepcopy(model).to(device), defense, threat, training, device, 0)
        updates.update(batch, 0.5).item()
        start = time.perf_counter()
        updates.update(batch, 0.5).item()
        seconds = time.perf_counter() - start
    return seconds * training.epochs * len(data) / len(batch)


class _Updates:
    """Updates the weights of one network, batch by batch."""

    def __init__(
        self,
        model: nn.Module,
        defense: Stack,
        threat: ThreatModel,
        training: Training,
        device: torch.device,
        seed: int,
    ) -> None:
        self.generator = Generator().manual_seed(seed)
        self._model, self._defense, self._threat, self._training = model.train(), defense, threat, training
        self._device = device
        self._optimizer = _optimizer(model, training)
        self._memory: dict[str, Tensor] = {}

    def update(self, batch: Data, done: float) -> Tensor:
        """One update of the weights; the loss, detached. `done`: the share of the training that lies behind."""
        batch = Data(batch.pixels().to(self._device), batch.labels.to(self._device), batch.index)
        images, targets = self._defense.augment(batch.floats(), batch.labels, self.generator)
        adversarial = self._defense.adversary(self._model, images, targets, self._threat, self.generator)
        for group in self._optimizer.param_groups:
            group["lr"] = _learning_rate(self._training, done)

        def objective() -> Tensor:
            return self._defense.loss(self._model, step.images, step.adversarial, step.targets, self.generator)

        step = Step(
            model=self._model,
            images=images,
            adversarial=adversarial,
            targets=targets,
            objective=objective,
            threat=self._threat,
            epoch=0,
            epochs=self._training.epochs,
            generator=self.generator,
            memory=self._memory,
        )

        def proceed() -> Tensor:
            self._optimizer.zero_grad()
            loss = objective()
            loss.backward()
            self._optimizer.step()
            return loss.detach()

        return self._defense.update(step, proceed)


def _optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise InputError("the model has no parameters to train. Give one that has, or one that is trained already")
    if training.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=training.lr, weight_decay=training.weight_decay)
    return torch.optim.SGD(weights, lr=training.lr, momentum=0.9, nesterov=True, weight_decay=training.weight_decay)


def _learning_rate(training: Training, done: float) -> float:
    """Of the update in whose middle the share `done` of the training is over."""
    if training.schedule == "constant":
        return training.lr
    return training.lr * min(done / _RISE, (1 - done) / (1 - _RISE))


def _batch_sizes(images: int, size: int) -> list[int]:
    """How many images each batch of an epoch has."""
    sizes = [min(size, images - start) for start in range(0, images, size)]
    if len(sizes) > 1 and sizes[-1] == 1 < size:
        sizes[-2:] = [size + 1]
    return sizes
