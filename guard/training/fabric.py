"""Fabric: the devices, processes and precision that a training runs on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from guard.recipe import Training

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fabric(training: Training, device: torch.device, devices: int = 1, nodes: int = 1) -> Fabric:
    """Lightning Fabric on one device, or in a process for each of several: each goes on from here.

    BatchNorm normalises by each process's part of a batch; the first one's running statistics are kept. Gradients are
    averaged by the loop itself and not by a DistributedDataParallel around the network, for a defense may
    ask a network several times in one update, freeze it, and move its weights.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric

    many = devices * nodes > 1
    settings: dict[str, Any] = {"strategy": "ddp", "num_nodes": nodes} if many else {}
    place: Any = devices if many or device.type == "cpu" else [device.index or 0]
    precision: Any = "32-true" if training.precision == "32" else training.precision
    found = Fabric(accelerator=device.type, devices=place, precision=precision, **settings)
    found.launch()
    return found


@contextmanager
def launched(training: Training, device: torch.device, devices: int, nodes: int) -> Iterator[Fabric]:
    """The same, with its processes' connections closed at the end."""
    found = fabric(training, device, devices, nodes)
    try:
        yield found
        found.barrier()
    finally:
        if found.world_size > 1:
            torch.distributed.destroy_process_group()  # a process that ends with it may be aborted, by its own threads


def first() -> bool:
    """Whether this process is the only one, or the first of those that a launcher has started."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))
