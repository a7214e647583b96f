"""Overlap: whether what an attack learns on is what it is evaluated on."""

import hashlib
from functools import cached_property

from guard.errors import InputError
from guard.source import Data

_SHARED = 0.01  # of the evaluated images; the published splits of data sets share a few


class Overlap:
    """Compares images with those that are evaluated, pixel by pixel."""

    def __init__(self, evaluated: Data) -> None:
        self._evaluated = evaluated

    def shared(self, data: Data) -> int:
        """How many of the evaluated images are among these."""
        return len(self._prints & _prints(data))

    def refuse(self, data: Data, who: str) -> None:
        """Raise InputError where more are than a data set's own repetitions explain."""
        shared = self.shared(data)
        if shared > _SHARED * len(self._evaluated):
            raise InputError(
                f"{who} would learn on {shared} of the {len(self._evaluated)} images that it is evaluated on. "
                f"Evaluate another split"
            )

    @cached_property
    def _prints(self) -> set[bytes]:
        return _prints(self._evaluated)


def _prints(data: Data) -> set[bytes]:
    """A hash of each different image; the same image in bytes and in floats has the same."""
    parts = (part.floats().flatten(1).numpy() for part in data.batches(256))
    return {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for part in parts for image in part}
