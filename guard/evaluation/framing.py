"""Framing: images of a data set that leaves their size open get the one that the models ask for."""

import torch

from guard.classifier import assemble
from guard.config import EvaluationConfig, Transfer
from guard.errors import InputError
from guard.evaluation.prepare import label_of
from guard.rng import seeded
from guard.source import ModelSource


def sources(config: EvaluationConfig) -> list[ModelSource]:
    """The models of a config, those that attacks are transferred from included."""
    return [*config.model, *(item.transfer for item in config.knowledge if isinstance(item, Transfer))]


def framed(config: EvaluationConfig) -> EvaluationConfig:
    """The config with `resize` and `crop` of its data set filled in where it leaves both open and a model has them.

    Epsilon is measured on the images that an attack gets, so that one size holds for all models. Raises InputError
    where they ask for different ones.
    """
    dataset = config.dataset
    if dataset.framing != (None, None):
        return config
    asked: dict[tuple[int | None, int | None], str] = {}
    for source in sources(config):
        with seeded(0, torch.device("cpu")):
            model = assemble(source, dataset.num_classes, dataset.image_shape)
        if (model.resize, model.crop) != (None, None):
            asked.setdefault((model.resize, model.crop), label_of(source))
    if not asked:
        return config
    if len(asked) > 1:
        (one, first), (other, second), *_ = asked.items()
        raise InputError(
            f"model '{first}' asks for {_said(one)}, '{second}' for {_said(other)}, and epsilon is measured on one "
            f"size of images. Give dataset '{dataset.name}' resize: and crop:"
        )
    resize, crop = next(iter(asked))
    return config.model_copy(update={"dataset": dataset.model_copy(update={"resize": resize, "crop": crop})})


def _said(framing: tuple[int | None, int | None]) -> str:
    return " and ".join(f"{key} {side}" for key, side in zip(("resize", "crop"), framing, strict=True) if side)
