"""Checkpoints: where a training stands, on disk, so that it goes on after a kill as if there had been none."""

import os
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from guard.errors import InputError
from guard.keys import key

_NAME, _BEFORE = "checkpoint.safetensors", "checkpoint-before.safetensors"
_NOTE, _DIGEST = "note", "digest"


class Checkpoints:
    """A folder that holds the last checkpoint and the one before it: tensors, and a text that goes with them.

    A file is written under another name and then renamed, so that it is whole or not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def exist(self) -> bool:
        """Whether there is one to go on from."""
        return any((self._folder / name).exists() for name in (_NAME, _BEFORE))

    def save(self, tensors: dict[str, Tensor], note: str) -> None:
        """Keep a checkpoint and the one before. Raises InputError where the disk takes none; both are left then."""
        last, partial = self._folder / _NAME, self._folder / f"partial-{os.getpid()}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(
                tensors, partial, metadata={_NOTE: note, _DIGEST: key(dict(sorted(tensors.items())))}
            )
            if last.exists():
                os.replace(last, self._folder / _BEFORE)
            os.replace(partial, last)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(
                f"checkpoint '{last}' cannot be written: {error}. Make room and run the same command again to go on"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def load(self, say: Callable[[str], None]) -> tuple[dict[str, Tensor], str] | None:
        """The last one that is whole, or None; of one that is damaged it is said."""
        for name in (_NAME, _BEFORE):
            path = self._folder / name
            if not path.exists():
                continue
            try:
                with safetensors.safe_open(path, framework="pt") as file:
                    note, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if note[_DIGEST] != key(dict(sorted(tensors.items()))):
                    raise ValueError("its content changed")
                return tensors, note[_NOTE]
            except Exception as error:  # truncated by a full disk, say
                what = " ".join(str(error).split())
                rest = "going on from the one before" if name == _NAME else "beginning anew"
                say(f"checkpoint '{path}' is damaged ({what}); {rest}")
        return None

    def clear(self) -> None:
        """Take all away."""
        for name in (_NAME, _BEFORE):
            (self._folder / name).unlink(missing_ok=True)
