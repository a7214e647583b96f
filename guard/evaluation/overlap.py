"""Overlap: whether what an attack or a defense learns on is what it is evaluated on."""

import base64
import hashlib
from functools import cached_property

from guard.errors import InputError
from guard.source import Data

_SHARED = 0.01  # of the evaluated images; the published splits of data sets share a few
_SIZE = 8  # bytes that tell images apart


class Overlap:
    """Compares images with those that are evaluated, pixel by pixel."""

    def __init__(self, evaluated: Data) -> None:
        self._evaluated = evaluated

    def shared(self, learned: str, who: str) -> int:
        """How many of the evaluated images are among those with these prints.

        Raises InputError where more are than a data set's own repetitions explain.
        """
        content = base64.b64decode(learned)
        known = {content[start : start + _SIZE] for start in range(0, len(content), _SIZE)}
        shared = len(self._prints & known)
        if shared > _SHARED * len(self._evaluated):
            raise InputError(
                f"{who} learned, or would learn, on {shared} of the {len(self._evaluated)} images that it is evaluated "
                f"on. Evaluate another split"
            )
        return shared

    @cached_property
    def _prints(self) -> set[bytes]:
        return _hashes(self._evaluated)


def prints(data: Data) -> str:
    """A text that tells these images from others; the same image in bytes and in floats is alike."""
    return base64.b64encode(b"".join(sorted(_hashes(data)))).decode()


def _hashes(data: Data) -> set[bytes]:
    parts = (part.floats().flatten(1).numpy() for part in data.batches(256))
    return {hashlib.blake2b(image.tobytes(), digest_size=_SIZE).digest() for part in parts for image in part}
