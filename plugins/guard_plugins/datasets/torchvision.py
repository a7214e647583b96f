"""MNIST, Fashion-MNIST and CIFAR-10, read from a folder; nothing is downloaded."""

import os
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from guard import Data, DatasetSource, InputError, Split, hookimpl

_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Folder(DatasetSource):
    """A data set of torchvision in a folder, with uint8 images."""

    torchvision_name: ClassVar[str]
    shape: ClassVar[tuple[int, int, int]]
    classes: ClassVar[tuple[str, ...]]
    looked_for: ClassVar[str]

    root: str | None = None
    """The folder that holds it, as torchvision lays it out; the environment variable GUARD_DATA where left out."""

    @property
    def num_classes(self) -> int:
        """Ten, for each of them."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """As their authors name them."""
        return self.classes

    def load(self, split: Split) -> Data:
        """See `DatasetSource.load`. Raises InputError where the folder lacks it or holds a damaged copy."""
        from torchvision import datasets

        folder, name = self._folder(), self.torchvision_name
        try:
            found = getattr(datasets, name)(folder, train=split == "train", download=False)
        except Exception as error:  # a damaged file raises anything
            if "not found" not in str(error):
                what = " ".join(str(error).split()) or type(error).__name__
                raise InputError(
                    f"dataset '{self.name}' in '{folder}' is damaged: {what}. Copy {self.looked_for} again"
                ) from error
            raise InputError(
                f"dataset '{self.name}' is not in '{folder}' (looked for {self.looked_for}). "
                f"Set GUARD_DATA or root: to its folder, or download it there with: "
                f"python -c \"from torchvision.datasets import {name}; {name}('{folder}', download=True)\""
            ) from error
        return self._data(found)

    @abstractmethod
    def _data(self, found: Any) -> Data:
        """From torchvision's object to images (N, C, H, W)."""

    def _folder(self) -> Path:
        root = self.root or os.environ.get("GUARD_DATA")
        if not root:
            raise InputError(f"dataset '{self.name}' needs a folder. Set GUARD_DATA or root: to the one that holds it")
        return Path(root).expanduser()


class Mnist(_Folder):
    """Handwritten digits: 60,000 to train on and 10,000 to test, grey, 28 x 28."""

    name = "mnist"
    paper = "LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998"
    torchvision_name = "MNIST"
    shape = (1, 28, 28)
    classes = _DIGITS
    looked_for = "MNIST/raw"

    def _data(self, found: Any) -> Data:
        return Data.of(found.data[:, None], found.targets)


class FashionMnist(Mnist):
    """Articles of clothing in the form of MNIST: 60,000 to train on and 10,000 to test, grey, 28 x 28."""

    name = "fashion-mnist"
    paper = "Xiao, Rasul, Vollgraf: Fashion-MNIST: a novel image dataset for benchmarking machine learning, 2017"
    torchvision_name = "FashionMNIST"
    classes = _CLOTHES
    looked_for = "FashionMNIST/raw"


class Cifar10(_Folder):
    """Animals and vehicles: 50,000 to train on and 10,000 to test, colour, 32 x 32.

    Also read from ROOT/cifar10/train.npz and test.npz: `images` uint8 (N, 32, 32, 3) and `labels` (N,).
    """

    name = "cifar10"
    paper = "Krizhevsky: Learning multiple layers of features from tiny images, 2009"
    torchvision_name = "CIFAR10"
    shape = (3, 32, 32)
    classes = _THINGS
    looked_for = "cifar10/*.npz and cifar-10-batches-py"

    def load(self, split: Split) -> Data:
        """See `DatasetSource.load`. Raises InputError where the folder lacks it or holds a damaged copy."""
        path = self._folder() / "cifar10" / f"{split}.npz"
        if not path.is_file():
            return super().load(split)
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return _colour(file["images"], file["labels"])
        except Exception as error:  # a damaged file raises anything
            raise InputError(f"'{path}' holds no images and labels: {error}. Write it again") from error

    def _data(self, found: Any) -> Data:
        return _colour(found.data, found.targets)


def _colour(images: Any, labels: Any) -> Data:
    """From images uint8 (N, H, W, C)."""
    return Data.of(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(labels))


@hookimpl
def guard_datasets() -> Iterable[type[DatasetSource]]:
    """The data sets of this plugin."""
    return [Mnist, FashionMnist, Cifar10]
