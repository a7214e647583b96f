"""Sources: where data sets and models come from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from guard.component import Component
from guard.errors import InputError
from guard.threat import Amount

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Streamed:
    """Images uint8 (N, C, H, W) that are read each time they are asked for, so that they never all sit in memory."""

    read: Callable[[int], Tensor]
    """The image uint8 (C, H, W) at a position of the split; called from several threads."""
    rows: Tensor
    """int64 (N,): positions in the split."""
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    dtype: ClassVar[torch.dtype] = torch.uint8

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return len(self), *self.image_shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> "Streamed":
        return Streamed(self.read, self.rows[rows], self.image_shape)

    def tensor(self) -> Tensor:
        """All of them, read. Raises InputError where one cannot be."""
        images = torch.empty(self.shape, dtype=self.dtype)
        with ThreadPoolExecutor() as pool:
            for place, image in enumerate(pool.map(self.read, self.rows.tolist())):
                if (image.dtype, tuple(image.shape)) != (self.dtype, self.image_shape):
                    raise InputError(
                        f"image {int(self.rows[place])} of the data set is {image.dtype} of {tuple(image.shape)}, not "
                        f"uint8 of {self.image_shape}. Give images of one size"
                    )
                images[place] = image
        return images


@dataclass(frozen=True)
class Data:
    """Images and labels of a split, or of a part of it."""

    images: Tensor | Streamed
    """(N, C, H, W), uint8, or float32 in [0, 1]."""
    labels: Tensor
    """int64 (N,)."""
    index: Tensor
    """int64 (N,): the position of each image in its split."""

    @staticmethod
    def of(images: Tensor | Streamed, labels: Tensor) -> "Data":
        """A whole split."""
        return Data(images, labels.long(), torch.arange(len(images)))

    @staticmethod
    def streamed(read: Callable[[int], Tensor], image_shape: tuple[int, int, int], labels: Tensor) -> "Data":
        """A whole split whose images are read when they are needed, `read(position)` uint8 (C, H, W)."""
        return Data.of(Streamed(read, torch.arange(len(labels)), image_shape), labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> "Data":
        return Data(self.images[rows], self.labels[rows], self.index[rows])

    def pixels(self) -> Tensor:
        """The images as they are kept; streamed ones are read."""
        return self.images.tensor() if isinstance(self.images, Streamed) else self.images

    def loaded(self) -> "Data":
        """The same with its images in memory."""
        return Data(self.pixels(), self.labels, self.index)

    def floats(self) -> Tensor:
        """The images as float32 in [0, 1]."""
        images = self.pixels()
        return images.float() / 255 if images.dtype == torch.uint8 else images

    def batches(self, size: int) -> Iterator["Data"]:
        """Consecutive parts of at most `size` images, the last partial one included."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @property
    def on_grid(self) -> bool:
        """Whether every pixel is a multiple of 1/255, so that 8-bit figures mean something."""
        if self.images.dtype == torch.uint8:
            return True
        levels = self.pixels() * 255
        return bool(((levels - levels.round()).abs() < 1e-3).all())


class DatasetSource(Component, ABC):
    """A data set. A subclass names itself, describes its images and loads a split."""

    kind: ClassVar[str] = "dataset"
    label_hint: ClassVar[str] = "the order of the classes"
    """What to check where a model does no better than chance."""

    split: Split = "test"
    """The split to evaluate on."""

    @abstractmethod
    def load(self, split: Split) -> Data:
        """The images and labels of a split, in a fixed order."""

    def sample(self, data: Data, limit: int, seed: int) -> Data:
        """At most `limit` images of a split, to evaluate; the first ones by default."""
        return data[:limit]

    @property
    def framing(self) -> tuple[int | None, int | None] | None:
        """Where the parameters `resize` and `crop` decide the images' size, those two, else None.

        Where both are None, an evaluation puts in what its models ask for.
        """
        return None

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many classes there are."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class; its number by default."""
        return tuple(str(number) for number in range(self.num_classes))


class ModelSource(Component, ABC):
    """A model. A subclass names itself and builds a network; the parameters here say how it is to be read.

    A registered model without `weights` is trained under the config's `training`.
    """

    kind: ClassVar[str] = "model"

    weights: str | None = None
    """A file of weights (.safetensors, or what torch.load reads with weights_only=True), or 'none': train it."""
    mean: tuple[float, ...] | None = None
    """Subtracted from each channel before the network sees it."""
    std: tuple[Amount, ...] | None = None
    """Divided by after the mean was subtracted."""
    resize: int | None = None
    """Resize images to this side before the network sees them."""
    crop: int | None = None
    """Crop the centre of this side after resizing."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """What the network returns."""
    access: Literal["gradients", "logits", "labels"] = "gradients"
    """How much of it an attack may see."""

    @property
    def trained(self) -> bool:
        """Whether what `build` returns is already trained."""
        return False

    @property
    def weights_file(self) -> str | None:
        """The file to load into what `build` returns; None where there is none, or where `build` reads `weights`."""
        return None if self.weights == "none" else self.weights

    def fingerprint(self) -> str:
        """The content of the file of weights."""
        path = Path(self.weights_file or "").expanduser()
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    @abstractmethod
    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """The network, for images (N, C, H, W); normalisation and weights are added by the framework."""
