"""What `guard train` left in a folder, as a model."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field
from torch import nn

from guard import ModelSource, hookimpl, load


class TrainedRun(ModelSource):
    """The network of a training run, with the weights that it kept; its folder's path stands for it, too.

    What the run's defenses changed in the network is part of it; preprocesses that it was trained behind are not: list
    them under `defenses`. It counts as trained.
    """

    name = "run"

    path: str = Field(examples=["runs/mnist-fgsm-rs"])
    """The folder."""

    @property
    def label(self) -> str:
        """What reports call it."""
        return Path(self.path).name

    @property
    def trained(self) -> bool:
        """It is."""
        return True

    def fingerprint(self) -> str:
        """The content of its weights."""
        weights = Path(self.path).expanduser() / "weights.safetensors"
        return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else ""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """The network. Raises InputError where the folder holds none."""
        return load(self.path)


@hookimpl
def guard_models() -> Iterable[type[ModelSource]]:
    """The models of this plugin."""
    return [TrainedRun]
