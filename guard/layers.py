"""Layers: what a network computes on the way to its logits, by the names that its user knows."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from guard.errors import InputError, suggestion


class Around(nn.Module):
    """What guard itself puts around a network."""

    inner: nn.Module
    """That network, or the one of several that gradients go through."""


def placed(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model on the device and in the precision; a copy where it has to move, for one's own is left as it is."""
    tensors = (*model.parameters(), *model.buffers())
    at_home = all(
        tensor.device == device and (tensor.dtype == dtype or not tensor.is_floating_point()) for tensor in tensors
    )
    return model if at_home else copy.deepcopy(model).to(device, dtype)


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode with frozen parameters, and put both back as they were."""
    training = [module for module in model.modules() if module.training]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for module in training:
        module.training = False
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


Note = Callable[[str, nn.Module, object, object], None]


def shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of what each layer answers one image with, in the order in which they run.

    Found by a forward of `images` (N, C, H, W), at least two. Left out is what answers with anything but floats with a
    row for each image, and what runs before the first layer with parameters, which only prepares the images. A layer
    that runs several times counts with its last answer.
    """
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if found or next(module.parameters(), None) is not None:
            found.pop(name, None)
            if isinstance(output, Tensor) and output.is_floating_point() and _has_rows(output, len(images)):
                found[name] = tuple(output.shape[1:])

    with torch.no_grad(), _hooked(_own(model), note):
        model(images)
    return found


@contextmanager
def recorded(model: nn.Module, names: Sequence[str], rows: int) -> Iterator[dict[str, Tensor]]:
    """Collect what the named layers answer during a forward of `rows` images; of one that runs several times, the last.

    Names are those of the user's own network; with the `net.` that guard.model puts in front they are accepted too.
    Raises InputError for an unknown layer, and on the way out for one that did not run or has no row for each image.
    """
    own = _own(model)
    known = dict(model.named_modules()) | own
    for name in names:
        if name not in known or not name:
            raise InputError(f"the model has no layer '{name}'. {suggestion(name, own)}")
    features: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise InputError(f"layer '{name}' answers with a {type(output).__name__}, not a tensor. Name another layer")
        if not _has_rows(output, rows):
            what = f"shape {tuple(output.shape)} for {rows} images"
            raise InputError(f"layer '{name}' answers with {what}. Name one that has a row for each image")
        features[name] = output.clone()  # a later in-place activation would overwrite it

    with _hooked({name: known[name] for name in names}, keep):
        yield features
    for name in names:
        if name not in features:
            raise InputError(f"layer '{name}' does not run when the model does. Name another layer")


def _own(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of the user's own network, which guard.model holds as its only child `net`."""
    while isinstance(model, Around):
        model = model.inner
    children = dict(model.named_children())
    net = children["net"] if list(children) == ["net"] else model
    return {name: layer for name, layer in net.named_modules() if name}


def _has_rows(output: Tensor, rows: int) -> bool:
    return output.dim() > 1 and len(output) == rows


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], note: Note) -> Iterator[None]:
    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
