"""Preparing: from a model source and a stack to the network that is attacked, trained where it must be."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guard.classifier import ImageModel, assemble, check_logits
from guard.config import EvaluationConfig
from guard.defense import Stack
from guard.errors import InputError
from guard.evaluation.keys import UnkeyableError, component_key, framework_source, key
from guard.evaluation.store import Store
from guard.live import LiveModel
from guard.progress import Progress
from guard.rng import Rng
from guard.source import Data, ModelSource
from guard.training.loop import estimate, train
from guard.victim import Stage, bridged, held
from guard.weights import load_weights, save_weights

_CALIBRATION = 512  # clean training images that a modification is calibrated on


@dataclass(frozen=True)
class Network:
    """A model behind the stages that act on its images."""

    model: nn.Module
    stages: tuple[Stage, ...]
    access: str
    key: str | None
    """Of its content; None where it cannot be hashed, and then nothing about it is kept."""

    def logits(self, images: Tensor, rng: Rng) -> Tensor:
        """What it answers: a fresh forward in eval mode without gradients, in full precision."""
        with held(self.model), torch.no_grad(), full_precision():
            logits: Tensor = self.model(bridged(self.stages, images, rng))
        return logits


@dataclass(frozen=True)
class Defended:
    """A defended network, and what an attacker can make of it."""

    network: Network
    relaxed: Network | None
    """With the backward that the defense's `relax` gives; None where it gives none."""
    oblivious: Network | None
    """The same weights without what the stack adds after training; None where that is nothing."""


class Workshop:
    """Builds, trains and defends the networks of an evaluation, each once."""

    def __init__(
        self,
        config: EvaluationConfig,
        store: Store,
        device: torch.device,
        progress: Progress,
        no_train: bool,
    ) -> None:
        self._config, self._store, self._device, self._progress = config, store, device, progress
        self._no_train = no_train
        self._dtype = torch.float64 if config.precision == "float64" else torch.float32
        self._train_data: Data | None = None
        self._trained: dict[str, nn.Module] = {}

    def defended(self, source: ModelSource, stack: Stack, label: str) -> Defended:
        """The network of a source under a stack. Raises InputError where it must be trained and may not or cannot."""
        left, right = stack.split()
        base = self._base(source, left, label)
        model = base
        if right.members:
            with held(base):
                model = right.modify(copy.deepcopy(base), self._calibration(right).to(self._dtype))
            model = model.to(self._device, self._dtype)
        network = self._network(model, stack.stages)
        relaxed = None
        if any(member.overrides("relax") for member in stack.members):
            relaxed = self._network(stack.relax(copy.deepcopy(model)), stack.stages)
        changed = bool(stack.stages) or any(member.overrides("modify") for member in right.members)
        return Defended(network, relaxed, self._network(base, ()) if changed else None)

    def _network(self, model: nn.Module, stages: Sequence[Stage]) -> Network:
        try:
            with held(model):  # the mode it was left in decides nothing
                content: str | None = key(model, [component_key(stage) for stage in stages])  # type: ignore[arg-type]
        except UnkeyableError:
            content = None
        return Network(model, tuple(stages), getattr(model, "access", "gradients"), content)

    def announce(self, wanted: Iterable[tuple[ModelSource, Stack, str]]) -> None:
        """Say what must be trained and about how long it takes. Raises InputError where that is forbidden."""
        jobs: dict[str, tuple[str, float]] = {}
        for source, stack, label in wanted:
            left, _ = stack.split()
            recipe = self._recipe(source, left)
            if recipe is None or recipe in jobs or self._store.weights(recipe).exists():
                continue
            name = label_of(source) if not left.members else label
            if self._no_train:
                raise InputError(f"{name} must be trained, and --no-train forbids it. Give weights, or allow training")
            jobs[recipe] = (name, self._estimate(source, left, name))
        if jobs:
            parts = ", ".join(f"{name} (about {max(seconds, 1):.0f} s)" for name, seconds in jobs.values())
            self._progress.say(f"to train first: {parts}")

    def _base(self, source: ModelSource, left: Stack, label: str) -> nn.Module:
        """The network as it stands after the stack's last training member."""
        recipe = self._recipe(source, left)
        if recipe is None:
            return self._placed(self._built(source, fresh=False))
        if recipe not in self._trained:
            model = self._untrained(source, left)
            path = self._store.weights(recipe)
            if path.exists():
                load_weights(model, path)
            else:
                self._train(model, left, label if left.members else label_of(source))
                save_weights(model, path)
            self._trained[recipe] = self._placed(model)
        return self._trained[recipe]

    def _untrained(self, source: ModelSource, left: Stack) -> nn.Module:
        """A network of one's own to train, changed by the members of the stack that come before training."""
        fine_tune = _given(source) and self._config.training.start == "weights"
        if source.name == LiveModel.name and not fine_tune:
            raise InputError("a live model cannot be trained from scratch. Use training: {from: weights}")
        model = copy.deepcopy(self._built(source, fresh=not fine_tune)).to(self._device)
        return left.modify(model, self._calibration(left)).to(self._device)

    def _built(self, source: ModelSource, fresh: bool) -> ImageModel:
        """The source's network, on the device; where fresh, with the initial weights that the seed gives."""
        data = self._config.dataset
        if fresh and source.weights is not None:
            source = source.model_copy(update={"weights": "none"})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._config.seed[0])
            model = assemble(source, data.num_classes, data.image_shape)
        with held(model), torch.no_grad():
            at = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0))
            probe = torch.full((2, *data.image_shape), 0.5, device=at.device, dtype=at.dtype)
            check_logits(model(probe), data.num_classes, label_of(source))
        return model

    def _placed(self, model: nn.Module) -> nn.Module:
        """On the device and in the precision; a copy where it has to move, for a live model is left as it is."""
        tensors = [*model.parameters(), *model.buffers()]
        at_home = all(
            tensor.device == self._device and (tensor.dtype == self._dtype or not tensor.is_floating_point())
            for tensor in tensors
        )
        return model if at_home else copy.deepcopy(model).to(self._device, self._dtype)

    def _train(self, model: nn.Module, left: Stack, label: str) -> None:
        train(
            Behind(left.stages, model) if left.stages else model,
            left,
            self._training_data(label),
            self._config.threat[0],
            self._config.training,
            seed=self._config.seed[0],
            device=self._device,
            progress=self._progress,
            what=f"training {label}",
        )

    def _estimate(self, source: ModelSource, left: Stack, label: str) -> float:
        data, threat = self._training_data(label), self._config.threat[0]
        return estimate(self._untrained(source, left), left, data, threat, self._config.training, self._device)

    def _training_data(self, label: str) -> Data:
        if self._train_data is None:
            try:
                self._train_data = self._config.dataset.load("train")
            except KeyError as error:
                raise InputError(f"{label} needs training images. Give train_data=(images, labels)") from error
        return self._train_data

    def _calibration(self, part: Stack) -> Tensor:
        """Clean training images for those that modify a network; none are loaded where nobody does."""
        modifying = [member.name for member in part.members if member.overrides("modify")]
        if not modifying:
            return torch.empty(0, *self._config.dataset.image_shape, device=self._device)
        data = self._training_data(f"defense '{modifying[0]}'")
        return data[:_CALIBRATION].floats().to(self._device)

    def _recipe(self, source: ModelSource, left: Stack) -> str | None:
        """A key of all that decides the trained weights; None where nothing is to be trained."""
        if _given(source) and not left.members:
            return None
        data = self._training_data(f"model '{label_of(source)}'")
        live = key(self._built(source, fresh=False)) if source.name == LiveModel.name else None
        return key(
            component_key(source),
            live,
            [component_key(member) for member in left.members],
            self._config.training.model_dump_json(),
            self._config.threat[0].model_dump_json() if left.members else None,
            data_key(data),
            self._config.seed[0],
            framework_source("", "training"),
            torch.__version__,
            self._device.type,
        )


class Behind(nn.Module):
    """A network with a stack's stages in front of it while it is trained."""

    def __init__(self, stages: Sequence[Stage], model: nn.Module) -> None:
        super().__init__()
        self.model, self._stages, self._calls = model, tuple(stages), 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images after all stages."""
        self._calls += 1
        rng = Rng(self._calls, torch.arange(len(images), device=images.device), tuple(images.shape[1:]))
        logits: Tensor = self.model(bridged(self._stages, images, rng))
        return logits


def _given(source: ModelSource) -> bool:
    """Whether the source comes with weights."""
    return source.trained or source.weights not in (None, "none")


def label_of(source: ModelSource) -> str:
    """What a report calls a model."""
    label = getattr(source, "label", None)
    if isinstance(label, str):
        return label
    variant = getattr(source, "variant", None)
    return f"{source.name}:{variant}" if variant else source.name


def data_key(data: Data) -> str:
    """A key of images, labels and their places in the split."""
    return key(data.images, data.labels, data.index)


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 are exact float32: TF32 is off."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
