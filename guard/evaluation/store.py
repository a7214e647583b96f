"""Store: finished shards and trained weights in the user's cache folder, by content key."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import nn

from guard.errors import InputError
from guard.weights import load_weights

Arrays = dict[str, NDArray[Any]]
M = TypeVar("M", bound=nn.Module)


class Store:
    """A folder of results. Each file is written under another name and then renamed, so none is ever half written."""

    def __init__(self, root: Path | None = None) -> None:
        """`root`: GUARD_CACHE, or the user's cache folder, where left out."""
        self.root = root or Path(os.environ.get("GUARD_CACHE") or platformdirs.user_cache_dir("guard"))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise InputError(
                f"the cache folder '{self.root}' cannot be written: {error.strerror}. Set GUARD_CACHE to another folder"
            ) from error

    def read(self, key: str, shard: str) -> Arrays | None:
        """The arrays of a shard, or None where it is missing or damaged."""
        path = self._shard(key, shard)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except FileNotFoundError:
            return None
        except Exception:  # truncated by a full disk, say: as good as missing
            path.unlink(missing_ok=True)
            return None

    def write(self, key: str, shard: str, arrays: Arrays) -> None:
        """Keep the arrays of a shard."""
        path = self._shard(key, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, arrays)

    def weights(self, key: str) -> Path:
        """Where the weights of a trained network are, or will be."""
        path = self.root / "weights" / f"{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def load(self, path: Path, build: Callable[[], M]) -> M | None:
        """What `build` makes, with the weights at this path; None where there are none, or damaged ones, which go."""
        if not path.exists():
            return None
        module = build()
        try:
            load_weights(module, path)
        except InputError:  # by a full disk, say: as good as missing
            path.unlink(missing_ok=True)
            return None
        return module

    @contextmanager
    def alone(self, path: Path, say: Callable[[str], None]) -> Iterator[None]:
        """Make what belongs at this path while no other process does; waits for one that does, and says so."""
        locks = (
            self.root / "locks"
        )  # which stay: whoever had opened one would otherwise hold another than who comes next
        locks.mkdir(exist_ok=True)
        lock = FileLock(locks / path.stem)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process, which is learning the same ({path.stem})")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _shard(self, key: str, shard: str) -> Path:
        return self.root / "shards" / key[:2] / key / f"{shard}.npz"


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write an .npz file in one piece."""
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    with partial.open("wb") as file:
        np.savez(file, **cast(Any, arrays))
    os.replace(partial, path)
