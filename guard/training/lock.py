"""Lock: one training in a folder at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from guard.errors import InputError
from guard.training.fabric import first

_NAME = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder while a training runs in it; of several processes of one training the first does. The system
    lets go of it when a process dies. Raises InputError where another one trains there."""
    if not first():
        yield
        return
    lock = FileLock(folder / _NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"another process is training in '{folder}'. Wait until it has ended, or give another folder (--out)"
        ) from error
    try:
        yield
    finally:
        lock.release()  # the file stays: whoever had opened it would otherwise hold another one than who comes next
