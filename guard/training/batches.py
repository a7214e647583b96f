"""Batches: the training images in the order of an epoch, near the device."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Generator, Tensor

from guard.source import Data, Streamed

_SHARE = 4  # of a GPU's free memory, images may take one part in so many
_AHEAD = 2  # batches that are read while another is worked on


class Batches:
    """The batches of one process: of `world` of them it gets every `world`-th image of a batch, from `rank` on.

    Images in memory go to the device at once, as they are kept, where they fit there; image files are read ahead.
    """

    def __init__(self, data: Data, size: int, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.sizes = batch_sizes(len(data), size, world)
        self._device, self._rank, self._world = device, rank, world
        self._data = data
        if isinstance(data.images, Tensor) and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if data.images.nbytes < free // _SHARE:
                self._data = Data(data.images.to(device), data.labels.to(device), data.index.to(device))

    def __len__(self) -> int:
        return len(self.sizes)

    def epoch(self, seed: int, start: int = 0) -> Iterator[tuple[Data, int]]:
        """The batches of an epoch from `start` on, on the device, each with its size over all processes.

        Their order follows from `seed`, and is the same in every process.
        """
        order = torch.randperm(len(self._data), generator=Generator().manual_seed(seed))
        batches = order.split(self.sizes)[start:]
        rows = [batch[self._rank :: self._world] for batch in batches]
        for part, batch in zip(self._ahead(rows), batches, strict=True):
            yield Data(part.pixels().to(self._device), part.labels.to(self._device), part.index), len(batch)

    def _ahead(self, rows: list[Tensor]) -> Iterator[Data]:
        """The images of each of these, in memory."""
        if not isinstance(self._data.images, Streamed):
            yield from (self._data[part.to(self._data.images.device)] for part in rows)
            return
        with ThreadPoolExecutor(1) as reader:
            waiting = [reader.submit(self._data[part].loaded) for part in rows[:_AHEAD]]
            for place in range(len(rows)):
                yield waiting.pop(0).result()
                waiting += [reader.submit(self._data[part].loaded) for part in rows[place + _AHEAD :][:1]]


def batch_sizes(images: int, size: int, world: int = 1) -> list[int]:
    """How many images each batch of an epoch has. The last, partial one is kept.

    Fewer than two a process join the batch before them, for BatchNorm needs two.
    """
    sizes = [min(size, images - start) for start in range(0, images, size)]
    if len(sizes) > 1 and sizes[-1] < min(2 * world, size):
        sizes[-2:] = [size + sizes[-1]]
    return sizes


def stream(seed: int, *place: int) -> int:
    """The seed for what is drawn at a place of a training: numbers of an epoch, an update, a process."""
    generator = Generator().manual_seed(seed)
    for number in place:
        generator.manual_seed((int(torch.randint(2**62, (), generator=generator)) + number) % 2**63)
    return int(torch.randint(2**62, (), generator=generator))
