"""Learner: a component that learns before it acts, on training images, through the project's training loop."""

from abc import abstractmethod
from pathlib import Path
from typing import Self

import torch
from pydantic import PositiveFloat, PositiveInt, PrivateAttr
from torch import nn

from guard.component import Component
from guard.errors import ContractError
from guard.keys import key
from guard.recipe import Training
from guard.rng import seeded
from guard.weights import load_weights, read_note, save_tensors


class Learner(Component):
    """What learns is a torch module of its own, on the training split alone; it is kept by all that decides it."""

    epochs: PositiveInt = 10
    """Passes over the images that it learns on."""
    batch_size: PositiveInt = 128
    """Images per update."""
    lr: PositiveFloat = 1e-3
    """The largest learning rate."""
    images: PositiveInt | None = None
    """It learns on so many images of the training split; on all of them where left out."""
    weights: str | None = None
    """A .safetensors file with what it learned in an earlier run; nothing is learned then."""

    _module: nn.Module | None = PrivateAttr(default=None)
    _note: str = PrivateAttr(default="")

    @abstractmethod
    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """The module before it has learned; `image_shape` is (C, H, W). Torch's own generators are seeded."""

    def training(self) -> Training:
        """How the module is trained: by Adam at a constant rate, by default."""
        return Training(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            optimizer="adamw",
            weight_decay=0,
            schedule="constant",
        )

    def fitted(self, module: nn.Module, note: str = "") -> Self:
        """This component with a module that has learned; `note`: how, as JSON."""
        other = self.model_copy()
        other._module, other._note = module.eval(), note
        return other

    def loaded(self, num_classes: int, image_shape: tuple[int, int, int]) -> Self:
        """This component with what the file `weights` says it learned. Raises InputError."""
        path = Path(str(self.weights)).expanduser()
        with seeded(0, torch.device("cpu")):
            module = self.unfitted(num_classes, image_shape)
        load_weights(module, path)
        return self.fitted(module, read_note(path) or "")

    @property
    def learned(self) -> bool:
        """Whether it is ready to act."""
        return self._module is not None

    @property
    def must_learn(self) -> bool:
        """Whether it is not, and no file says what it learned."""
        return self._module is None and self.weights is None

    @property
    def module(self) -> nn.Module:
        """What has learned. Raises ContractError where nothing has yet."""
        if self._module is None:
            raise ContractError(self._unlearned)
        return self._module

    @property
    def _unlearned(self) -> str:
        return "it has learned nothing yet. Evaluate it, which fits it first; or give weights: FILE"

    @property
    def note(self) -> str:
        """How it learned, as JSON."""
        return self._note

    def save(self, path: str | Path) -> None:
        """Write what it learned, and how, to a .safetensors file, which `weights` takes."""
        save_tensors(self.module.state_dict(), path, note=self._note)

    def fingerprint(self) -> str:
        """What it learned."""
        return "" if self._module is None else key(self._module.state_dict())
