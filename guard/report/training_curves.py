"""Curves of a training: accuracies, loss and learning rate by epoch, as the numbers that SVG pictures are made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from guard.report.text import seconds
from guard.report.training_words import figures, measured, planned
from guard.training.record import Epoch, Record

_WIDE, _HALF = (1000, 250), (448, 130)  # width and height of a plot, about in pixels of the page
_DOTTED = 40  # of more epochs no dot each
_LABEL = 60  # what the words above the kept epoch take on each side of it

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One quantity by epoch, broken where an epoch has none."""

    kind: str
    """The field of an epoch, which its style is named by."""
    path: str
    dots: tuple[Point, ...]
    kept: Point | None
    """Where it stands at the epoch that was kept."""


@dataclass(frozen=True)
class Band:
    """The strip of one epoch, and what is said where the pointer rests on it."""

    left: float
    middle: float
    epoch: Epoch
    text: str


@dataclass(frozen=True)
class Picture:
    """Lines over the epochs. The origin is the upper left corner of the plot."""

    caption: str
    width: int
    height: int
    lines: tuple[Line, ...]
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]
    bands: tuple[Band, ...]
    band: float
    """The width of a band."""
    kept: Band | None
    anchor: str
    """How the words above the kept epoch stand to it, so that they stay in the picture: start, middle or end."""


def pictures(record: Record) -> list[Picture]:
    """Accuracy where any was measured, then loss and learning rate; none before the first epoch is over.

    A training that is not finished leaves room for the epochs to come.
    """
    if not record.epochs:
        return []
    kinds = [kind for kind, _ in measured(record)]
    top = [_picture(record, "Accuracy on held-out training images, in %", kinds, _WIDE)] if kinds else []
    return [*top, _picture(record, "Loss", ["loss"], _HALF), _picture(record, "Learning rate", ["lr"], _HALF)]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` or below to `high` or above: 1, 2 or 5 times a power of ten apart.

    At most `most` steps fit between `low` and `high`, which differ.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= most + 1e-9)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.9g}") for number in range(first, last + 1)]


def _picture(record: Record, caption: str, kinds: Sequence[str], size: tuple[int, int]) -> Picture:
    width, height = size
    shares = "loss" not in kinds and "lr" not in kinds
    marks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] if shares else _scale(record, kinds[0])
    bottom, top = marks[0], marks[-1]
    epochs = max(epoch.epoch for epoch in record.epochs)
    epochs = epochs if record.finished else max(epochs, planned(record))

    def x(epoch: float) -> float:
        return round((epoch - 0.5) / epochs * width, 1)

    def y(value: float) -> float:
        return round((top - value) / (top - bottom) * height, 1)

    bands = tuple(Band(x(epoch.epoch - 0.5), x(epoch.epoch), epoch, _said(epoch)) for epoch in record.epochs)
    lines = []
    for kind in kinds:
        values = [_value(epoch, kind) for epoch in record.epochs]
        points = [None if v is None else (band.middle, y(v)) for band, v in zip(bands, values, strict=True)]
        marked = [point for band, point in zip(bands, points, strict=True) if band.epoch.epoch == record.kept]
        lines.append(Line(kind, _path(points), _dots(points), marked[0] if marked else None))
    kept = next((band for band in bands if band.epoch.epoch == record.kept), None)
    middle = kept.middle if kept else 0.0
    return Picture(
        caption=caption,
        width=width,
        height=height,
        lines=tuple(lines),
        rows=tuple(Tick(y(mark), f"{100 * mark:g}" if shares else f"{mark:g}") for mark in marks),
        columns=tuple(Tick(x(epoch), f"{epoch:,}") for epoch in _numbered(epochs)),
        bands=bands,
        band=round(width / epochs, 2),
        kept=kept,
        anchor="start" if middle < _LABEL else "end" if middle > width - _LABEL else "middle",
    )


def _scale(record: Record, kind: str) -> list[float]:
    """The marks of an axis that has 0 on it."""
    values = [value for epoch in record.epochs if (value := _value(epoch, kind)) is not None]
    low, high = min([0.0, *values]), max([0.0, *values])
    return ticks(low, high if high > low else low + 1, 5)


def _value(epoch: Epoch, kind: str) -> float | None:
    """What can be drawn of it: a loss that became infinite cannot."""
    value = getattr(epoch, kind)
    return value if value is not None and math.isfinite(value) else None


def _numbered(epochs: int) -> list[int]:
    """The epochs that an axis names: all of a few, of many the first and multiples of a round number."""
    step = max(1, round(ticks(0, epochs, 12)[1]))
    return [epoch for epoch in range(1, epochs + 1) if epoch == 1 or epoch % step == 0]


def _path(points: Sequence[Point | None]) -> str:
    moves = [
        f"{'L' if before else 'M'}{point[0]:g} {point[1]:g}"
        for before, point in zip([None, *points], points, strict=False)
        if point
    ]
    return "".join(moves)


def _dots(points: Sequence[Point | None]) -> tuple[Point, ...]:
    """Every point of a few; of many those alone that no line reaches."""
    around = zip([None, *points], points, [*points[1:], None], strict=False)
    return tuple(
        point for before, point, after in around if point and (len(points) <= _DOTTED or not (before or after))
    )


def _said(epoch: Epoch) -> str:
    """All of an epoch in a line, and its events in lines of their own."""
    parts = [*figures(epoch), f"loss {epoch.loss:.3f}", f"learning rate {epoch.lr:.3g}", seconds(epoch.seconds)]
    return "\n".join([f"epoch {epoch.epoch}: {', '.join(parts)}", *epoch.events])
