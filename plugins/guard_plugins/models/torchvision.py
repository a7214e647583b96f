"""The classifiers of torchvision, with its weights."""

import logging
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator
from torch import nn

import guard
from guard import InputError, ModelSource, hookimpl

_log = logging.getLogger(__name__)


class Torchvision(ModelSource):
    """A classifier of torchvision by its name there: `torchvision:resnet18`.

    `weights: IMAGENET1K_V1` (or DEFAULT, or another of torchvision's names) downloads them, and takes mean, std, resize
    and crop from them; for another number of classes the last linear layer is a new one, to be fine-tuned. With
    `weights: FILE` those keys are yours to give.
    """

    name = "torchvision"

    variant: str
    """Its name in torchvision: resnet18, vit_b_16, ..."""

    @property
    def weights_file(self) -> str | None:
        """None for weights of torchvision's, which `build` reads."""
        return None if self._published() is not None else super().weights_file

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """See `ModelSource.build`. Raises InputError where the network does not fit the images or the classes, and
        where its weights cannot be downloaded."""
        from torchvision.models import get_model

        if image_shape[0] != 3:
            raise InputError(f"model 'torchvision:{self.variant}' takes 3 channels; these images have {image_shape[0]}")
        weights = self._published()
        if weights is None:
            net: nn.Module = get_model(self.variant, weights=None, num_classes=num_classes)
            return net
        try:
            net = get_model(self.variant, weights=weights, progress=False)
        except (OSError, RuntimeError) as error:  # no connection, or a file that was cut short
            raise InputError(_unreachable(self.variant, weights, error)) from error
        classes = len(weights.meta["categories"])
        if num_classes != classes:
            _new_head(net, num_classes, classes, self.variant)
            _log.warning("torchvision:%s has a new last layer: %d classes, not %d", self.variant, num_classes, classes)
        look = weights.transforms()
        return guard.model(net, mean=look.mean, std=look.std, resize=look.resize_size[0], crop=look.crop_size[0])

    @model_validator(mode="after")
    def _known(self) -> Self:
        from torchvision import models

        names = models.list_models(module=models)
        if self.variant not in names:
            raise ValueError(f"torchvision has no classifier '{self.variant}'. {_suggestion(self.variant, names)}")
        file = self.weights_file
        if file is not None and not Path(file).expanduser().is_file():
            known = list(models.get_model_weights(self.variant).__members__)
            raise ValueError(f"weights '{file}' are no file and none of torchvision's. {_suggestion(file, known)}")
        return self

    def _published(self) -> Any:
        """The member of torchvision's weights that `weights` names, or None."""
        from torchvision.models import get_model_weights

        return get_model_weights(self.variant).__members__.get(self.weights or "")


def _new_head(net: nn.Module, num_classes: int, classes: int, variant: str) -> None:
    linear = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    last = net.get_submodule(linear[-1]) if linear else None
    if not isinstance(last, nn.Linear) or last.out_features != classes:
        raise InputError(
            f"the weights of 'torchvision:{variant}' are for {classes} classes, the data set has {num_classes}, and "
            f"it has no linear layer to replace. Choose another network, or weights: none"
        )
    net.set_submodule(linear[-1], nn.Linear(last.in_features, num_classes))


def _unreachable(variant: str, weights: Any, error: Exception) -> str:
    import torch

    file, folder = Path(weights.url).name, Path(torch.hub.get_dir()) / "checkpoints"
    reason = " ".join(str(error).split())
    return (
        f"the weights {weights.name} of 'torchvision:{variant}' could not be downloaded: {reason}. "
        f"Put {file} into '{folder}', or give weights: FILE"
    )


def _suggestion(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(known)}"


@hookimpl
def guard_models() -> Iterable[type[ModelSource]]:
    """The models of this plugin."""
    return [Torchvision]
