"""Cueing: what networks make of images whose shape and texture are of different classes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from guard.building import framed
from guard.claims.asking import asked
from guard.claims.config import ClaimConfig, Cues
from guard.claims.lines import CueLine
from guard.claims.verdict import Comparison, CuePicture, Figure, compared
from guard.config import EvaluationConfig
from guard.errors import InputError
from guard.evaluation.answer import Answer
from guard.evaluation.images import load_images
from guard.evaluation.network import SCORING, Network
from guard.explaining.cues import decisions
from guard.goal import Goal
from guard.progress import Progress
from guard.rng import Rng
from guard.source import Data, ModelSource

SHOWN = 8
"""Images on the page."""


def cues(config: ClaimConfig, seed: int, progress: Progress) -> tuple[list[Comparison], int, tuple[CuePicture, ...]]:
    """The lines in one seed, of how many images whose two cues differ, and a few of them. Raises InputError."""
    assert config.cues is not None
    assert config.cues.model is not None
    network, data, device, dtype = asked(config.cues, config.cues.model, seed, progress)
    dataset = framed(config.cues.dataset, [config.cues.model])
    data, textures = _conflicting(dataset, data)

    def classes(images: Data) -> Tensor:
        return predicted(network, images, device, dtype, seed)

    found = decisions(classes(data), data.labels, textures).numpy()
    flags = {"shape": found == 1, "texture": found == 0}
    names = {cue: Figure(name=f"taken for the class of the {cue}") for cue in flags}
    lines = [line for line in config.expect if isinstance(line, CueLine)]
    rows = [
        compared(number, seed, names[low], names[high], line.by, [flags[low], flags[high]], "decisions")
        for number, line in enumerate(lines)
        for low, high in [(line.lower, line.higher)]
    ]
    return rows, len(found), _pictures(dataset, data, textures, classes)


def _pictures(dataset: Any, data: Data, textures: Tensor, classes: Callable[[Data], Tensor]) -> tuple[CuePicture, ...]:
    """A few images, evenly from all of them, beside what they were made of where the data set knows."""
    rows = torch.arange(len(data))[:: -(-len(data) // SHOWN)]
    kinds = [data[rows]]
    photos = dataset.photos(dataset.split) if callable(getattr(dataset, "photos", None)) else None
    if photos is not None:
        shapes, patterns = (part[data.index[rows]].loaded() for part in photos)
        height, width = patterns.images.shape[2:]
        middle = patterns.floats()[:, :, height // 4 : -(height // 4), width // 4 : -(width // 4)]
        enlarged = F.interpolate(middle, (height, width), mode="bilinear", antialias=True)
        kinds += [shapes, Data.of(enlarged, patterns.labels)]
    answers, names = [classes(kind) for kind in kinds], dataset.class_names
    return tuple(
        CuePicture(
            classes=(names[int(data.labels[row])], names[int(textures[row])]),
            images=tuple(kind.floats()[number].numpy() for kind in kinds),
            predictions=tuple(names[int(answer[number])] for answer in answers),
        )
        for number, row in enumerate(rows.tolist())
    )


def check_like(cues: Cues, settings: EvaluationConfig) -> None:
    """Raise InputError unless images with two cues are like those that are evaluated, in shape and classes."""
    own, other = (framed(dataset, settings.sources) for dataset in (cues.dataset, settings.dataset))
    for what in ("image_shape", "num_classes"):
        if getattr(own, what) != getattr(other, what):
            raise InputError(
                f"cues: data set '{own.name}' has {what} {getattr(own, what)}, and '{other.name}', which is evaluated, "
                f"{getattr(other, what)}. Evaluate {own.name}"
            )


def cued(cues: Cues, sources: Sequence[ModelSource], seed: int) -> tuple[Data, Tensor]:
    """The images, and the classes of their textures, int64 (N,), without those that are of one class. InputError."""
    dataset = framed(cues.dataset, [*sources])
    return _conflicting(dataset, load_images(dataset, cues.limit, seed))


def _conflicting(dataset: Any, data: Data) -> tuple[Data, Tensor]:
    """Those of its images whose two classes differ, and the textures'."""
    textures = dataset.textures(dataset.split)[data.index]
    conflict = (textures != data.labels).nonzero()[:, 0]
    if not len(conflict):
        raise InputError(
            f"cues: shape and texture of all {len(data)} images of data set '{dataset.name}' are of the same class. "
            f"Write split: conflict, or another data set"
        )
    return data[conflict].loaded(), textures[conflict]


def predicted(
    network: Network, data: Data, device: torch.device, dtype: torch.dtype, seed: int, draws: int = 1
) -> Tensor:
    """The class of each image, int64 (N,): of a network that draws, the one of most of its `draws`."""
    found = []
    for batch in data.batches(network.batch_size(data[:1].floats().to(device, dtype))):
        images, index = batch.floats().to(device, dtype), batch.index.to(device)
        rng = Rng(seed, index, tuple(images.shape[1:])).fold(SCORING)
        count = draws if network.randomized else 1
        logits = (network.logits(images, rng.fold(draw), draw) for draw in range(count))
        found.append(Answer.of(logits, Goal(batch.labels.to(device))).prediction.cpu())
    return torch.cat(found)
