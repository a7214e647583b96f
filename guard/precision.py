"""Precision: what float32 means."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32 are products in float32: no TF32, no bfloat16, no autocast."""
    with ExitStack() as settings:
        settings.enter_context(torch.autocast(device.type, enabled=False))
        for place, name, value in _precisions():
            settings.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, value)
        yield


def _precisions() -> list[tuple[Any, str, object]]:
    """Where torch says how float32 is multiplied, and what makes it exact."""
    cuda, cudnn, mkldnn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
    if not hasattr(cuda, "fp32_precision"):  # before torch 2.9
        return [(cuda, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    places = (cuda, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)  # type: ignore[attr-defined]
    return [(place, "fp32_precision", "ieee") for place in places]
