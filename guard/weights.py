"""Weights: tensors by name, read from a file and written to one, never any code."""

import logging
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from guard.errors import InputError

_log = logging.getLogger(__name__)
_NOTE = "note"  # under which a text is kept
_WRAPPERS = ("state_dict", "model")  # keys of a checkpoint that hold the weights
_PREFIXES = ("module.", "net.")  # of DataParallel and of guard's own ImageModel


def load_weights(net: nn.Module, path: str | Path, *, new_head: bool = False) -> None:
    """Put the weights of a file into `net`: .safetensors, or what torch.load reads with weights_only=True.

    A checkpoint may hold them under `state_dict` or `model`, and all names may begin with `module.` or `net.`.
    `new_head`: the last linear layer is left as it is where the file's is for another number of classes.
    Raises InputError for a file that is missing, damaged or more than tensors, and for weights that do not fit.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"there is no weights file '{path}'. Give weights: FILE, or none to train")
    own = net.state_dict()
    state = _unwrapped(_read(path), own, path)
    if new_head:
        state = _beheaded(net, state, path)
        own = {key: value for key, value in own.items() if key in state or not key.startswith(f"{_head(net)}.")}
    problem = _misfit(state, own)
    if problem:
        raise InputError(f"weights '{path}' do not fit the model: {problem}. Give the weights of this architecture")
    net.load_state_dict(state, strict=False)  # what may lack is checked above


def save_weights(net: nn.Module, path: str | Path) -> None:
    """Write the weights of `net` to a .safetensors file, in one piece: never half written."""
    save_tensors(net.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, note: str | None = None) -> None:
    """Write tensors by name to a .safetensors file, in one piece: never half written. `note`: a text beside them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    # copies, for safetensors refuses tensors that share memory
    state = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    try:
        partial.touch()
        mode = partial.stat().st_mode  # what the user lets others do; safetensors lets them do nothing
        safetensors.torch.save_file(state, partial, metadata=None if note is None else {_NOTE: note})
        partial.chmod(mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_note(path: str | Path) -> str | None:
    """The text that goes with the tensors of a .safetensors file; None where there is none."""
    try:
        with safetensors.safe_open(Path(path), framework="pt") as file:
            return (file.metadata() or {}).get(_NOTE)
    except (OSError, SafetensorError):
        return None


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript; both end below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything: EOFError, KeyError, RuntimeError, ...
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            raise InputError(
                f"weights '{path}' hold more than tensors, and guard runs no code from a file. "
                f"Convert it where you trust it: torch.save(net.state_dict(), 'weights.pt')"
            ) from error
        what = "no safetensors file" if isinstance(error, SafetensorError) else "no file that torch.load reads"
        raise InputError(f"weights '{path}' are damaged, or {what}. Copy the file again") from error


def _unwrapped(state: Any, own: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint under the model's names."""
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"weights '{path}' are no mapping of names to tensors. Save net.state_dict()")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _head(net: nn.Module) -> str:
    """The name of the last linear layer; empty where there is none."""
    return next((name for name, layer in reversed(list(net.named_modules())) if isinstance(layer, nn.Linear)), "")


def _beheaded(net: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights without those of the last layer, where they are for another number of classes."""
    head = _head(net)
    weight = state.get(f"{head}.weight")
    if not head or weight is None:
        return state
    wanted = net.state_dict()[f"{head}.weight"].shape
    if weight.dim() != 2 or weight.shape == wanted or weight.shape[1] != wanted[1]:
        return state
    _log.warning(
        "weights '%s' are for %d classes: the last layer, %s, is a new one for %d", path, len(weight), head, wanted[0]
    )
    return {key: value for key, value in state.items() if not key.startswith(f"{head}.")}


def _misfit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What does not fit, kind by kind with the first of each; empty where all does."""
    # older checkpoints lack this counter, which no forward in eval mode reads
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in state if key in own and state[key].shape != own[key].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(own)} missing (first '{missing[0]}')")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected (first '{unexpected[0]}')")
    if reshaped:
        key = reshaped[0]
        shapes = f"{tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        parts.append(f"{len(reshaped)} of another shape (first '{key}': {shapes})")
    return ", ".join(parts)
