"""Building: from a model source to a network for the images of a data set."""

import copy

import torch
from torch import Tensor, nn

from guard.classifier import ImageModel, assemble, check_logits
from guard.errors import GuardError, InputError, one_line
from guard.layers import held
from guard.rng import seeded
from guard.source import Data, DatasetSource, ModelSource

_CALIBRATION = 512


def built(
    source: ModelSource, dataset: DatasetSource, seed: int, *, fresh: bool = False, new_head: bool = False
) -> ImageModel:
    """The source's network; where fresh, with the initial weights that the seed gives, whatever weights are given.

    `new_head`: weights for another number of classes leave the last layer as the seed gives it.
    Raises InputError where it does not take the data set's images, or has too few outputs for its classes.
    """
    if fresh and source.weights is not None:
        source = source.model_copy(update={"weights": "none"})
    with seeded(seed, torch.device("cpu")):
        model = assemble(source, dataset.num_classes, dataset.image_shape, new_head=new_head)
    model, label = unframed(model, dataset), label_of(source)
    probe = beside(model, torch.full((2, *dataset.image_shape), 0.5))
    check_logits(answer(model, probe, label), dataset.num_classes, label)
    return model


def to_train(source: ModelSource, dataset: DatasetSource, seed: int, *, scratch: bool) -> ImageModel:
    """Where training starts: at the given weights, or at those that the seed gives.

    `scratch`: not at the given ones. Raises InputError where the source has no others.
    """
    fine_tune = given(source) and not scratch
    if source.trained and source.weights is None and scratch:
        raise InputError(
            f"model '{label_of(source)}' comes trained, and training from scratch needs a source that builds "
            f"fresh weights. Use training: {{from: weights}}"
        )
    return built(source, dataset, seed, fresh=not fine_tune, new_head=fine_tune)


def given(source: ModelSource) -> bool:
    """Whether the source comes with weights."""
    return source.trained or source.weights not in (None, "none")


def label_of(source: ModelSource) -> str:
    """What a report calls a model."""
    label = getattr(source, "label", None)
    if isinstance(label, str):
        return label
    variant = getattr(source, "variant", None)
    return f"{source.name}:{variant}" if variant else source.name


def answer(model: nn.Module, images: Tensor, what: str) -> Tensor:
    """What a model answers to images as they are. Raises InputError where it does not take them; `what` names it."""
    try:
        with held(model), torch.no_grad(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            logits: Tensor = model(images)
    except GuardError:
        raise
    except Exception as error:
        kind = f"{str(images.dtype).removeprefix('torch.')} images of shape {tuple(images.shape)} on {images.device}"
        raise InputError(f"model '{what}' does not take {kind}: {one_line(error)}. Give a model that does") from error
    return logits


def beside(model: nn.Module, images: Tensor) -> Tensor:
    """Images on a model's device and in its precision."""
    tensors = [*model.parameters(), *model.buffers()]
    return images.to(next((tensor for tensor in tensors if tensor.is_floating_point()), images))


def calibrating(data: Data, seed: int) -> Data:
    """The clean training images that a modification is calibrated on: 512, drawn by the seed."""
    return data[torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:_CALIBRATION]]


def copied(model: nn.Module, label: str) -> nn.Module:
    """A copy of a network. Raises InputError where it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"{label}: the model cannot be copied ({error}), and the given one is left as it is. "
            f"Take out of it what cannot be copied"
        ) from error


def unframed(model: ImageModel, source: DatasetSource) -> ImageModel:
    """The model for images that the data set resized and cropped: it does not do so again where they fit its crop."""
    if source.framing is None or source.image_shape[1:] != (model.crop, model.crop):
        return model
    model = copy.copy(model)  # a live one is left as it is
    model.resize = model.crop = None
    return model


def framed(dataset: DatasetSource, models: list[ModelSource]) -> DatasetSource:
    """The data set with `resize` and `crop` filled in where it leaves both open and a model has them.

    Epsilon is measured on the images that an attack gets, so that one size holds for all models. Raises InputError
    where they ask for different ones.
    """
    if dataset.framing != (None, None):
        return dataset
    asked: dict[tuple[int | None, int | None], str] = {}
    for source in models:
        with seeded(0, torch.device("cpu")):
            model = assemble(source, dataset.num_classes, dataset.image_shape)
        if (model.resize, model.crop) != (None, None):
            asked.setdefault((model.resize, model.crop), label_of(source))
    if not asked:
        return dataset
    if len(asked) > 1:
        (one, first), (other, second), *_ = asked.items()
        raise InputError(
            f"model '{first}' asks for {_said(one)}, '{second}' for {_said(other)}, and epsilon is measured on one "
            f"size of images. Give dataset '{dataset.name}' resize: and crop:"
        )
    resize, crop = next(iter(asked))
    return dataset.model_copy(update={"resize": resize, "crop": crop})


def _said(framing: tuple[int | None, int | None]) -> str:
    return " and ".join(f"{key} {side}" for key, side in zip(("resize", "crop"), framing, strict=True) if side)
