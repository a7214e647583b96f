"""Memory: a batch that does not fit is computed in halves."""

import ctypes
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def halving(compute: Callable[[Tensor], T], rows: Tensor) -> list[T]:
    """compute(rows), in as many pieces as memory asks for; raises what it raises for a single row."""
    try:
        return [compute(rows)]
    except Exception as error:
        if len(rows) < 2 or not _out_of_memory(error):
            raise
    if torch.cuda.is_available():  # here, where the error no longer holds the frames with their tensors
        torch.cuda.empty_cache()
    middle = len(rows) // 2
    return halving(compute, rows[:middle]) + halving(compute, rows[middle:])


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether this, or what it was raised from, is torch's complaint on a GPU or on a CPU."""
    if error is None:
        return False
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError) or _out_of_memory(error.__cause__)


def give_back() -> None:
    """Have glibc return freed memory to the system: it lies scattered, and would grow from shard to shard."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # others have none
    if trim is not None:
        trim(0)
