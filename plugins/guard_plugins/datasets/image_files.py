"""Image files with a class each: how they are framed, and which output of a model a class is."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from guard import Data, DatasetSource, Rng, Split
from guard_plugins.datasets.labels import Classes, read_classes
from guard_plugins.datasets.photographs import Photographs, shape_of


class ImageFiles(DatasetSource):
    """What data sets of image files have in common."""

    label_hint = "classes:, label_offset: and num_outputs: of the data set"

    resize: PositiveInt | None = None
    """The shorter side in pixels. Where crop is left out too, both are what the models ask for."""
    crop: PositiveInt | None = None
    """The side of the square in the centre, after resizing. Epsilon is measured on what is left."""
    classes: str | dict[str, Annotated[int, Field(strict=True, ge=0)]] | None = None
    """Which output of the model each class is: imagenet, a file, or a mapping {class: output}; a file is such a mapping
    (.json, .yaml) or has one class a line in the order of the outputs."""
    label_offset: int = 0
    """Added to every label: 1 for a model whose output 0 is a background class."""
    num_outputs: PositiveInt | None = None
    """How many outputs the model has, where that is not the last class plus 1."""

    @field_validator("classes", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return {str(name): output for name, output in value.items()} if isinstance(value, Mapping) else value

    @property
    def framing(self) -> tuple[int | None, int | None]:
        """As given."""
        return self.resize, self.crop

    @property
    def num_classes(self) -> int:
        """The outputs of the model."""
        return len(self._classes().titles)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Where known; the number of the output elsewhere."""
        return self._classes().titles

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W), of the first image. Raises InputError where that cannot be read."""
        file, _ = next(self._listed(self.split))
        return shape_of(file, self.resize, self.crop)

    def load(self, split: Split) -> Data:
        """See `DatasetSource.load`: every file's header is read, and its pixels when they are needed.

        Raises InputError for what is no data set, images of mixed sizes and a label that is no class.
        """
        return self.read(*zip(*self._listed(split), strict=True))

    def read(self, files: Sequence[Path], classes: Sequence[str]) -> Data:
        """Files, with the classes of those names. Raises InputError as `load` does."""
        photographs = Photographs.of(files, self.resize, self.crop)
        return Data.streamed(photographs, photographs.shape, self.outputs(classes))

    def outputs(self, classes: Sequence[str]) -> Tensor:
        """The outputs of classes, int64 (N,). Raises InputError for an unknown one."""
        outputs = self._classes().outputs
        return torch.tensor([outputs[name] for name in classes])

    def sample(self, data: Data, limit: int, seed: int) -> Data:
        """At most `limit` images with as many of each class, drawn by the seed: one of each class in turn.

        A larger limit adds images behind those of a smaller one; one that takes all leaves them in their order.
        """
        if limit >= len(data):
            return data
        order = Rng(seed, data.index, ()).uniform().argsort(stable=True)
        turns, turn = Counter[int](), []
        for label in data.labels[order].tolist():
            turn.append(turns[label])
            turns[label] += 1
        return data[order[torch.tensor(turn).argsort(stable=True)[:limit]]]

    def _classes(self) -> Classes:
        names = self._names()
        known = self._numbered(names) if self.classes is None else read_classes(self.classes, names)
        return known.at(self.label_offset, self.num_outputs, names)

    @abstractmethod
    def _names(self) -> list[str]:
        """The names of the classes, of all splits, sorted."""

    @abstractmethod
    def _numbered(self, names: list[str]) -> Classes:
        """The outputs of classes where `classes` says none."""

    @abstractmethod
    def _listed(self, split: Split) -> Iterator[tuple[Path, str]]:
        """Files, and the names of their classes; at least one."""
