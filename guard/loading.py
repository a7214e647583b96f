"""Loading: the network that a training left in its folder."""

import json
import logging
from pathlib import Path

import torch
from torch import nn

from guard.classifier import ImageModel, assemble
from guard.configfile import read
from guard.errors import InputError
from guard.rng import seeded
from guard.training.run import CONFIG, MODEL, WEIGHTS, read_record
from guard.trainingconfig import TrainingConfig
from guard.weights import load_weights

_log = logging.getLogger(__name__)
_LIVE = ("tensors", "live-model")


def load(run: str | Path) -> nn.Module:
    """The network of a training run, in eval mode, with the weights that were kept: images in [0, 1] to logits.

    It is the network itself, wrapped only where the run's model normalises, resizes or answers with anything but
    logits. What the run's defenses changed in it is part of it; preprocesses that it was trained behind are not.
    Raises InputError where the folder holds no training, or one of a model that only the program that had it can build.
    """
    folder = Path(run).expanduser()
    record = read_record(folder)
    if record is None or not (folder / WEIGHTS).is_file():
        raise InputError(f"'{run}' holds no trained network. Give the folder that guard train wrote")
    source = record.config.get("model")
    if isinstance(source, dict) and source.get("name") in _LIVE:
        raise InputError(
            f"'{run}' is of a model that was handed over in Python, and only you can build it. "
            f"Load {folder / WEIGHTS} into it"
        )
    if record.kept is None:
        _log.warning("'%s' holds a network that overfitted catastrophically: it is not robust", run)
    if not record.finished:
        _log.warning("the training in '%s' is not finished: these are weights of epoch %s", run, record.kept)
    config, _ = read(TrainingConfig, folder / CONFIG, _as_it_was(source, folder))
    # a source that is told to build fresh weights needs no file of them, and these come below
    model_source = config.model if config.model.trained else config.model.model_copy(update={"weights": "none"})
    with seeded(0, torch.device("cpu")):
        model: nn.Module = assemble(model_source, record.num_classes, record.image_shape)
        model = config.defense.stack.modify(model, torch.full((2, *record.image_shape), 0.5))
    net = model.net if isinstance(model, ImageModel) and isinstance(model.net, nn.Module) else model
    load_weights(net, folder / WEIGHTS)
    plain = isinstance(model, ImageModel) and model.plain
    return (net if plain else model).eval()


def _as_it_was(source: object, folder: Path) -> list[str]:
    """Where the file of the model was edited or has gone, the copy that the run kept stands for it."""
    if not isinstance(source, dict) or source.get("name") != "file":
        return []
    file = Path(str(source["path"])).expanduser()
    kept = folder / MODEL / file.name
    if not kept.is_file() or (file.is_file() and file.read_bytes() == kept.read_bytes()):
        return []
    return [f"model.path={json.dumps(str(kept))}"]
