"""Where and with what an evaluation is computed."""

import importlib.metadata
import platform
from functools import cache

import torch

from guard.errors import InputError


def device_of(name: str) -> torch.device:
    """The device of that name; auto takes a GPU where there is one. Raises InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("mps"):
        raise InputError("device 'mps' has no float64, which distances are checked in. Use auto or cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' is not to be had here. Use auto or cpu") from error
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


@cache
def libraries() -> dict[str, str]:
    """The versions of what computes."""
    found = {}
    for name in ("guard-robustness", "torch", "torchvision", "kornia", "numpy", "scipy", "scikit-learn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """What a run is computed with."""
    return {"python": platform.python_version(), "platform": platform.platform()} | libraries()
