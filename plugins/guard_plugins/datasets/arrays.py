"""Images and labels from a file of arrays."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from guard import Data, DatasetSource, InputError, Split, hookimpl

_CHANNELS = (1, 3)


class Arrays(DatasetSource):
    """Images uint8, or float in [0, 1], and whole labels, in an .npz or .safetensors file for each split."""

    name = "arrays"

    path: str
    """The file of the test split."""
    train_path: str | None = None
    """The file of the training split, where something is to be trained."""
    images: str = "images"
    """The name of the images in the file."""
    labels: str = "labels"
    """The name of the labels in the file."""
    layout: Literal["nchw", "nhwc"] | None = None
    """The order of the images' axes; where left out, the one that puts 1 or 3 channels in their place."""
    classes: PositiveInt | None = None
    """How many classes there are; the largest label of all files plus 1 where left out."""

    def fingerprint(self) -> str:
        """The files' content."""
        return " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in self._files())

    @property
    def num_classes(self) -> int:
        """As given, or counted in the labels."""
        if self.classes is not None:
            return self.classes
        return 1 + max(int(label) for path in self._files() for label in _labels(path, self.labels).unique())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), from the file's header."""
        path = self._file("test")
        shape = _shape(path, self.images)
        sizes = dict(zip(self._layout(path, shape), shape, strict=True))
        return sizes["c"], sizes["h"], sizes["w"]

    def load(self, split: Split) -> Data:
        """See `DatasetSource.load`. Raises InputError for what is no such file."""
        path = self._file(split)
        images, labels = _read(path, self.images), _labels(path, self.labels)
        if self._layout(path, tuple(images.shape)) == "nhwc":
            images = images.permute(0, 3, 1, 2)
        if len(images) != len(labels):
            raise InputError(f"'{path}' holds {len(images)} images and {len(labels)} labels. Save one label per image")
        low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
        if low < 0 or high >= self.num_classes:
            raise InputError(
                f"labels in '{path}' reach from {low} to {high}; there are {self.num_classes} classes. "
                f"Count from 0, and give classes: as many as there are"
            )
        return Data.of(_checked(images, path).contiguous(), labels)

    def _file(self, split: Split) -> Path:
        name = self.path if split == "test" else self.train_path
        if name is None:
            raise InputError("dataset 'arrays' has no training images. Give train_path: FILE")
        path = Path(name).expanduser()
        if path.suffix not in (".npz", ".safetensors"):
            raise InputError(f"dataset 'arrays' reads no '{name}'. Give an .npz or .safetensors file")
        if not path.is_file():
            raise InputError(f"dataset 'arrays' finds no file '{name}'. Give path: FILE.npz")
        return path

    def _files(self) -> list[Path]:
        return [self._file("test")] + ([] if self.train_path is None else [self._file("train")])

    def _layout(self, path: Path, shape: tuple[int, ...]) -> str:
        if len(shape) != 4:
            raise InputError(f"images in '{path}' have shape {shape}. Save them as (N, C, H, W) or (N, H, W, C)")
        if self.layout is not None:
            return self.layout
        first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
        if first == last:
            raise InputError(
                f"images in '{path}' have shape {shape}: where are the channels? Give layout: nchw or nhwc"
            )
        return "nchw" if first else "nhwc"


def _checked(images: Tensor, path: Path) -> Tensor:
    """uint8 as it is; float as float32 in [0, 1]."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise InputError(f"images in '{path}' are {kind}. Save uint8, or float in [0, 1]")
    if not images.isfinite().all():
        raise InputError(f"images in '{path}' hold NaN or infinity. Save float in [0, 1]")
    if len(images) and (images.min() < 0 or images.max() > 1):
        raise InputError(
            f"images in '{path}' reach from {images.min():.3g} to {images.max():.3g}. Save uint8, or float in [0, 1]"
        )
    return images.float()


def _labels(path: Path, key: str) -> Tensor:
    """Labels int64 (N,)."""
    labels = _read(path, key)
    if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        kind = str(labels.dtype).removeprefix("torch.")
        raise InputError(f"labels in '{path}' are {kind} of shape {tuple(labels.shape)}. Save whole numbers (N,)")
    return labels.long()


def _read(path: Path, key: str) -> Tensor:
    """One array of a file."""
    with _opened(path) as file:
        _check_present(key, list(file.keys()), path)
        if path.suffix == ".safetensors":
            return file.get_tensor(key)
        array = file[key]
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _shape(path: Path, key: str) -> tuple[int, ...]:
    """The shape of one array, from the file's header alone."""
    with _opened(path) as file:
        _check_present(key, list(file.keys()), path)
        if path.suffix == ".safetensors":
            return tuple(file.get_slice(key).get_shape())
        with file.zip.open(f"{key}.npy") as array:
            old = np.lib.format.read_magic(array) == (1, 0)
            read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            return read(array)[0]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of arrays; whatever goes wrong with it is an InputError."""
    from safetensors import safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                yield file
        else:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                yield file
    except InputError:
        raise
    except Exception as error:  # a damaged file raises anything
        raise InputError(f"'{path}' cannot be read: {error}. Save arrays of numbers with numpy.savez") from error


def _check_present(key: str, keys: list[str], path: Path) -> None:
    if key not in keys:
        raise InputError(f"'{path}' has no '{key}'; it holds {', '.join(keys)}. Give images: and labels: their names")


@hookimpl
def guard_datasets() -> Iterable[type[DatasetSource]]:
    """The data sets of this plugin."""
    return [Arrays]
