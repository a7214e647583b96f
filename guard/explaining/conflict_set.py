"""A set of cue conflicts in a folder, made from pairs of photographs."""

import csv
import io
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from guard.errors import InputError
from guard.explaining.conflicts import conflicts
from guard.keys import data_key, key
from guard.layers import held
from guard.progress import Progress
from guard.rng import Rng
from guard.source import Data

_BATCH = 64
_SETTINGS, _CUES = "cues.json", "cues.csv"
_COLUMNS = ("file", "shape", "texture", "shape_photo", "texture_photo")


def build(
    photos: Data,
    model: nn.Module,
    out: str | Path,
    pairs: int,
    seed: int = 0,
    *,
    steps: int = 200,
    step_size: float = 0.02,
    weight: float = 0.1,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> None:
    """Write `pairs` images with one photograph's shapes and another's texture, as the data set `cue-conflict` reads it.

    The photographs' classes differ, and the model, on whichever device it is, predicts both correctly: a cue that it
    does not know is none. Each photograph lends its shapes once before one does so again, and no pair repeats; more
    pairs go on behind fewer. `steps` and what follows are those of `conflicts`. In `out` are left the images and both
    photographs of each, 8-bit PNGs of one size, cues.json with the settings and, written last, cues.csv. Where a build
    was killed, the same call goes on; of a set that is whole nothing is touched. Raises InputError where `out` holds a
    set of other settings, and where there are not as many pairs.

    Judge other networks by a set than the one that made it: how that one answers is up to `weight`, for it sees the
    features that were fitted (MobileNet v2, 8 pairs: 0 decisions for shape with 0.05, 6 with 0.2).
    """
    out, progress = Path(out).expanduser(), progress or Progress()
    settings = {
        "photos": data_key(photos),
        "model": key([(name, value.cpu()) for name, value in model.state_dict().items()]),
        **{"pairs": pairs, "seed": seed, "steps": steps, "step_size": step_size, "weight": weight},
    }
    if _whole(out, settings):
        return
    chosen, device = _pairs(photos, model, pairs, seed), _device(model)
    _claim(out, settings)
    progress.start("pairs", pairs)
    try:
        for numbers in torch.arange(pairs).split(batch_size):
            files = [out / _name(number) for number in numbers.tolist()]
            if not all(file.exists() for file in files):
                shapes, textures = (photos[rows].floats() for rows in chosen[numbers].T)
                made = conflicts(
                    model,
                    shapes.to(device),
                    textures.to(device),
                    steps=steps,
                    step_size=step_size,
                    weight=weight,
                    batch_size=batch_size,
                    progress=progress,
                )
                for file, *images in zip(files, shapes, textures, made, strict=True):
                    for prefix, image in zip(("shape-", "texture-", ""), images, strict=True):
                        _save(out / f"{prefix}{file.name}", image)
            progress.advance(len(files))
    finally:
        progress.finish()
    _list(out / _CUES, photos.labels[chosen])


def _whole(out: Path, settings: dict[str, object]) -> bool:
    """Whether the folder holds the set already. Raises InputError where it holds another, or a part of one."""
    path = out / _SETTINGS
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name, value in settings.items() if found.get(name) != value]
    else:
        differing = ["everything"] if (out / _CUES).exists() else []
    if differing:
        raise InputError(
            f"'{out}' holds cue conflicts that differ in {', '.join(differing)}. Give another folder, or remove it"
        )
    return (out / _CUES).exists()


def _claim(out: Path, settings: dict[str, object]) -> None:
    """Make the folder, with the settings in it. Raises InputError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / _SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"'{out}' cannot be written: {error.strerror}. Give another folder") from error


def _pairs(photos: Data, model: nn.Module, pairs: int, seed: int) -> Tensor:
    """The positions of the photographs of shape and texture, int64 (pairs, 2)."""
    device = _device(model)
    with held(model), torch.no_grad():
        parts = [model(part.floats().to(device)).argmax(1).cpu() == part.labels for part in photos.batches(_BATCH)]
    known = torch.cat(parts).nonzero().flatten() if parts else photos.labels
    labels = photos.labels[known]
    most = len(known) ** 2 - int(labels.bincount().square().sum())
    if not 1 <= pairs <= most:
        raise InputError(
            f"pairs is {pairs}; the model knows {len(known)} of {len(photos)} photographs, which make {most} pairs of "
            f"different classes. Give at least 1 and at most as many, or more photographs"
        )
    return known[torch.tensor(list(islice(_drawn(labels, seed), pairs)))]


def _drawn(labels: Tensor, seed: int) -> Iterator[tuple[int, int]]:
    """All pairs of rows with different labels, those with the shapes of one row far apart."""
    rng = Rng(seed, torch.arange(len(labels)), ())
    order, first = rng.uniform().argsort(stable=True), rng.integers(len(labels))
    for turn in range(len(labels)):
        for shape in order.tolist():
            others = order[labels[order] != labels[shape]]
            if turn < len(others):
                yield shape, int(others[(first[shape] + turn) % len(others)])


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _name(number: int) -> str:
    return f"{number:05}.png"


def _save(path: Path, image: Tensor) -> None:
    """An image (C, H, W) as an 8-bit PNG in color."""
    from PIL import Image

    levels = (255 * image.detach().cpu()).round().to(torch.uint8).expand(3, -1, -1)
    file = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    _write(path, file.getvalue())


def _list(path: Path, labels: Tensor) -> None:
    """The csv of images whose shapes and textures have the labels (N, 2)."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(_COLUMNS)
    for number, classes in enumerate(labels.tolist()):
        name = _name(number)
        table.writerow([name, *classes, f"shape-{name}", f"texture-{name}"])
    _write(path, file.getvalue().encode())


def _write(path: Path, content: bytes) -> None:
    """In one piece: never half written."""
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    partial.write_bytes(content)
    os.replace(partial, path)
