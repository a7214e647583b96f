"""Photographs: image files of any size as tensors of one size."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from guard import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Photographs:
    """Image files as RGB tensors: the shorter side resized, then the centre cropped, as torchvision does with them.

    They are resized on 8 bits, bilinearly and antialiased, by Pillow; neither colour profiles nor EXIF's orientation
    are looked at, for torchvision's own data sets do not.
    """

    files: tuple[Path, ...]
    resize: int | None
    """The shorter side in pixels."""
    crop: int | None
    """The side of the square in the centre."""
    shape: tuple[int, int, int]
    """(3, H, W), of each of them."""

    @classmethod
    def of(cls, files: Sequence[Path], resize: int | None, crop: int | None) -> "Photographs":
        """Raises InputError for a file whose header is none of an image's, and unless all will have one size."""
        shapes = {file: shape_of(file, resize, crop) for file in files}
        first, shape = next(iter(shapes.items()))
        for file, other in shapes.items():
            if other != shape:
                raise InputError(
                    f"images have different sizes: '{first}' is {_said(shape)}, '{file}' is {_said(other)}"
                    f"{' after resize. Give crop:' if resize else '. Give resize: and crop:'}"
                )
        return cls(tuple(files), resize, crop, shape)

    def __call__(self, position: int) -> Tensor:
        """The image uint8 (3, H, W) at a position. Raises InputError where it cannot be read."""
        from PIL.Image import Resampling

        with _opened(self.files[position]) as image:
            colours = image.convert("RGB")
            height, width = _resized(image, self.resize)
            if self.resize is not None:
                colours = colours.resize((width, height), Resampling.BILINEAR)
            if self.crop is not None:
                top, left = round((height - self.crop) / 2), round((width - self.crop) / 2)
                colours = colours.crop((left, top, left + self.crop, top + self.crop))
        return torch.from_numpy(np.array(colours)).permute(2, 0, 1)


def shape_of(file: Path, resize: int | None, crop: int | None) -> tuple[int, int, int]:
    """(3, H, W) of an image once it is resized and cropped, from its header alone. Raises InputError."""
    with _opened(file) as image:
        height, width = _resized(image, resize)
    if crop is not None and crop > min(height, width):
        raise InputError(
            f"crop is {crop}, and '{file}' is {height} x {width}{' after resize' if resize else ''}. "
            f"Give resize: {crop} or more"
        )
    return (3, height, width) if crop is None else (3, crop, crop)


def _resized(image: "Image", resize: int | None) -> tuple[int, int]:
    """Height and width once the shorter side is `resize`; the longer one is rounded down, as torchvision does."""
    width, height = image.size
    short = min(width, height)
    return (height, width) if resize is None else (resize * height // short, resize * width // short)


@contextmanager
def _opened(file: Path) -> "Iterator[Image]":
    """An image file; whatever goes wrong with it is an InputError that names it."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":  # Pillow would clip them to 8 bits
                raise InputError(f"image '{file}' has more than 8 bits per channel. Convert it to 8")
            yield image
    except InputError:
        raise
    except Exception as error:  # a damaged file raises anything
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"image '{file}' cannot be read: {what}. Copy it again, or take it away") from error


def _said(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]} x {shape[2]}"
