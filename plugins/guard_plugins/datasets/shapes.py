"""Shapes filled with textures, drawn when they are asked for: does a network look at the one or at the other?"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from guard import Data, DatasetSource, Rng, hookimpl
from guard_plugins.datasets.outlines import OUTLINES, REACH
from guard_plugins.datasets.textures import TEXTURES

Cues = Literal["train", "test", "conflict"]

_SIDE = 32
_IMAGES: dict[Cues, int] = {"train": 4000, "test": 1000, "conflict": 1008}
_CLASSES = len(OUTLINES)


class Shapes(DatasetSource):
    """Eight geometric shapes in color, 32 x 32, each with a texture of its own; nothing is downloaded.

    4,000 images to train on and 1,000 to test. In the split `conflict`, 1,008 images in the manner of Geirhos et al.,
    the texture is always another class's, each of the 56 pairs equally often. Labels are the shape's; `textures` gives
    the other cue. Place, size, rotation and colors are drawn alike for all classes, and so are the texture's place,
    period and a tilt of at most 10 degrees. All shapes of a size have the same area.
    """

    name = "shapes"
    paper = (
        "Geirhos, Rubisch, Michaelis, Bethge, Wichmann, Brendel: ImageNet-trained CNNs are biased towards texture, "
        "ICLR 2019"
    )

    split: Cues = "test"  # type: ignore[assignment]  # one more than others have
    """The split to evaluate on; conflict has shapes with another class's texture."""
    correlation: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of training and test images with the texture of their shape's class; 1/8 is no relation at all."""
    seed: int = 0
    """Of all draws."""

    @property
    def num_classes(self) -> int:
        """Eight, of shapes and of textures."""
        return _CLASSES

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Color."""
        return 3, _SIDE, _SIDE

    @property
    def class_names(self) -> tuple[str, ...]:
        """The shapes'."""
        return tuple(OUTLINES)

    def load(self, split: Cues) -> Data:
        """See `DatasetSource.load`."""
        shapes, textures, rng = self._cues(split)
        return Data.of(_drawn(shapes, textures, rng), shapes)

    def textures(self, split: Cues) -> Tensor:
        """The class of each image's texture, int64 (N,), numbered like the shapes."""
        return self._cues(split)[1]

    def _cues(self, split: Cues) -> tuple[Tensor, Tensor, Rng]:
        """The class of each image's shape and texture, and its draws."""
        index = torch.arange(_IMAGES[split])
        rng = Rng(self.seed, index, self.image_shape).fold(list(_IMAGES).index(split))
        shapes = index % _CLASSES
        if split == "conflict":
            return shapes, (shapes + 1 + index // _CLASSES % (_CLASSES - 1)) % _CLASSES, rng
        others = (shapes + 1 + rng.integers(_CLASSES - 1, shape=())) % _CLASSES
        return shapes, torch.where(rng.uniform(shape=()) < self.correlation, shapes, others), rng


def _drawn(shapes: Tensor, textures: Tensor, rng: Rng) -> Tensor:
    """Images uint8 (N, 3, H, W): a colored texture in the shape, on plain gray."""
    inside, level = _inside(shapes, rng)[:, None], _level(textures, rng)[:, None]
    bright, dark = _colors(rng)
    gray = rng.uniform(0.35, 0.65, (1, 1, 1))
    surface = dark + level * (bright - dark)
    return (255 * (gray + inside * (surface - gray))).round().to(torch.uint8)


def _inside(shapes: Tensor, rng: Rng) -> Tensor:
    """How much of each pixel lies inside the shape: (N, H, W) in [0, 1]."""
    size, across, down, turn = rng.uniform(shape=(4, 1, 1)).unbind(1)
    radius = 6.5 + 2.5 * size
    room = (_SIDE - 1) / 2 - REACH * radius
    x, y = _pixels()
    x, y = _turned(x - room * (2 * across - 1), y - room * (2 * down - 1), 2 * math.pi * turn)
    outside = _each(list(OUTLINES.values()), shapes, x / radius, y / radius)
    return (0.5 - radius * outside).clamp(0, 1)


def _level(textures: Tensor, rng: Rng) -> Tensor:
    """The texture without its colors: (N, H, W) in [0, 1]."""
    size, across, down, tilt = rng.uniform(shape=(4, 1, 1)).unbind(1)
    period = 4.5 + 1.5 * size
    u, v = _turned(*_pixels(), math.radians(10) * (2 * tilt - 1))
    noise = rng.uniform(shape=(_SIDE, _SIDE))
    u, v = u / period + 4 * across, v / period + 4 * down  # any phase: four periods hold each pattern's repeats whole
    return _each(list(TEXTURES.values()), textures, u, v, noise)


def _colors(rng: Rng) -> Tensor:
    """A bright and a dark color of any hues: (2, N, 3, 1, 1)."""
    hue, fullness, value = rng.uniform(shape=(3, 2, 1, 1, 1)).transpose(0, 2).unbind(1)
    full = ((6 * hue + torch.tensor([0.0, 4.0, 2.0])[:, None, None]) % 6 - 3).abs().sub(1).clamp(0, 1)
    brightness = torch.tensor([0.8, 0.2])[:, None, None, None, None] + 0.2 * value
    return brightness * (1 - (0.5 + 0.5 * fullness) * (1 - full))


def _pixels() -> tuple[Tensor, Tensor]:
    """The places of pixels from the image's center: x (1, 1, W) and y (1, H, 1)."""
    place = torch.arange(_SIDE) - (_SIDE - 1) / 2
    return place[None, None, :], place[None, :, None]


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y


def _each(functions: Sequence[Callable[..., Tensor]], classes: Tensor, *places: Tensor) -> Tensor:
    """What the function of its class makes of each image's places (N, H, W)."""
    values = torch.empty_like(places[0])
    for number, function in enumerate(functions):
        rows = classes == number
        values[rows] = function(*(place[rows] for place in places))
    return values


@hookimpl
def guard_datasets() -> Iterable[type[DatasetSource]]:
    """The data sets of this plugin."""
    return [Shapes]
