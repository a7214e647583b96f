"""Sources for what a program already holds: a model and tensors."""

from typing import ClassVar

from pydantic import PrivateAttr
from torch import nn

from guard.source import Data, DatasetSource, ModelSource, Split


class LiveModel(ModelSource):
    """A model that was handed over in Python; it counts as trained."""

    name: ClassVar[str] = "live-model"

    label: str = "model"
    """What reports call it."""
    _module: nn.Module = PrivateAttr()

    @classmethod
    def of(cls, module: nn.Module, label: str | None = None) -> "LiveModel":
        """Wrap a module; its class names it unless `label` does."""
        source = cls(label=label or type(module).__name__)
        source._module = module
        return source

    @property
    def trained(self) -> bool:
        """It counts as trained and is left as it is."""
        return True

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """The module itself."""
        return self._module


class LiveData(DatasetSource):
    """Tensors that were handed over in Python, with a training split where one was given."""

    name: ClassVar[str] = "tensors"

    classes: int
    """How many classes there are."""
    _splits: dict[str, Data] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, test: Data, train: Data | None, num_classes: int) -> "LiveData":
        """Wrap splits."""
        source = cls(classes=num_classes)
        source._splits.update({"test": test} | ({} if train is None else {"train": train}))
        return source

    def load(self, split: Split) -> Data:
        """The tensors; without a training split, nothing to train on."""
        return self._splits[split]

    @property
    def num_classes(self) -> int:
        """As given."""
        return self.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of the test split."""
        channels, height, width = self._splits["test"].images.shape[1:]
        return channels, height, width
