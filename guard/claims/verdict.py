"""Verdict: what was measured of each line in each seed, and what that says about the sentence."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from guard.claims.lines import SHARES
from guard.statistics import holm, interval, mcnemar, median_interval, pairs_interval, pairs_test

Ruling = Literal["supported", "contradicted", "undecided"]

LEVEL = 0.05
"""Of all lines and seeds together, corrected by Holm's method."""
_ROUNDED = 1e-12  # what a difference of two fractions may lack of the margin it has


class Figure(BaseModel):
    """One of the two that a line compares."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    """What it is of: 'low on at, adaptive'; 'blocks of 4'."""
    value: float | None = None
    """A fraction of images, the mean of likeness, the median of jumps; None where there is none."""
    interval: tuple[float, float] | None = None
    """95 %."""
    mark: str = ""
    """What is wrong with it: 'INVALID: the reason'; empty where it is valid."""


class Comparison(BaseModel):
    """One line in one seed."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    line: int
    """Its place in `expect`, from 0."""
    seed: int
    figure: str = "robust-accuracy"
    """robust-accuracy, shape-bias, jump, likeness or seconds; agreement of shuffled images; decisions for a cue."""
    layer: str | None = None
    """Of a jump."""
    lower: Figure
    higher: Figure
    by: float = 0.0
    """How much lower the one must be at least; of figures that are no shares, as a fraction of the higher one."""
    difference: float | None = None
    """higher - lower: above 0 as expected."""
    sign: int = 0
    """1 as expected, -1 the other way round, 0 where the shares, or the images that they differ on, show neither."""
    p_value: float | None = None
    """That the two differ by chance, two-sided, of the same images: the exact sign test, which for flags is McNemar's;
    of likeness, which is over pairs of images, Hoeffding's; None of one measurement each, such as seconds."""
    p_corrected: float | None = None
    """The same after Holm's correction for all lines and seeds."""

    @property
    def significant(self) -> bool:
        """Whether the two differ by more than chance, where a test can tell; else whether they differ."""
        if self.p_corrected is None:
            return self.difference is not None
        return self.p_corrected < LEVEL

    @property
    def wide(self) -> bool:
        """Whether the difference is as large as expected."""
        if self.difference is None or self.higher.value is None:
            return False
        return self.difference >= self.by * (1 if self.figure in SHARES else self.higher.value) - _ROUNDED

    @property
    def holds(self) -> bool:
        """Whether it is as expected."""
        return self.significant and self.sign > 0 and self.wide

    @property
    def reversed(self) -> bool:
        """Whether it is the other way round."""
        return self.significant and self.sign < 0


class Chart(BaseModel):
    """Lines over named places, for a picture."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="strings")

    title: str
    places: tuple[str, ...]
    lines: dict[str, tuple[float, ...]]
    """Name -> a value for each place."""
    share: bool
    """Whether the values are fractions of images."""


class CuePicture(BaseModel):
    """An image whose shape and texture are of different classes, and what it was made of, float32 (C, H, W)."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True, use_attribute_docstrings=True)

    classes: tuple[str, str]
    """Of the shape and of the texture."""
    images: tuple[NDArray[np.float32], ...]
    """The image; where they are known, the photograph of the shape and an enlarged patch of the texture's, too."""
    predictions: tuple[str, ...]
    """On each of them."""


class Verdict(BaseModel):
    """What `guard.claim` returns: the sentence, what came out, and why."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True, use_attribute_docstrings=True)

    schema_version: int = 1
    claim: str
    verdict: Ruling
    """supported: every line holds in every seed. contradicted: some line is reversed in every seed."""
    why: str = ""
    """Why it is undecided."""
    images: int
    comparisons: tuple[Comparison, ...]
    """By line, then seed."""
    folders: dict[int, str] = {}
    """Seed -> the folder of its evaluation, beside claim.json."""
    charts: tuple[Chart, ...] = ()
    """What the lines are taken from: all sides of a shuffle, all layers of a jump."""
    pictures: tuple[CuePicture, ...] = Field((), exclude=True)
    """Of the first seed; not part of claim.json."""
    config: dict[str, Any]
    versions: dict[str, str]

    def __str__(self) -> str:
        return f"{self.verdict}: {self.claim}" + (f" ({self.why})" if self.why else "")


def compared(
    line: int,
    seed: int,
    lower: Figure,
    higher: Figure,
    by: float | None,
    values: Sequence[NDArray[Any]],
    figure: str = "robust-accuracy",
    layer: str | None = None,
) -> Comparison:
    """A line in a seed, from the lower and the higher figure of each image: bool or float (N,), NaN where it has none.

    Shares of draws are compared by their mean, and counted as standing above one half; likeness by its mean, and what
    is neither by its median. An image counts in the test only where it has both figures; with one value each there is
    no test.
    """
    low, high = (each.astype(np.float64) for each in values)
    figures = [_with(*item, figure) for item in ((lower, low), (higher, high))]
    start, end = (item.value for item in figures)
    difference = None if start is None or end is None else end - start
    p_value, lean = (None, difference or 0.0) if difference is None or len(low) < 2 else _test(low, high, figure)
    sign = _sign(difference or 0.0)
    return Comparison(
        line=line,
        seed=seed,
        figure=figure,
        layer=layer,
        lower=figures[0],
        higher=figures[1],
        by=by or 0.0,
        difference=difference,
        sign=sign if sign == _sign(lean) else 0,
        p_value=p_value,
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _test(low: NDArray[Any], high: NDArray[Any], figure: str) -> tuple[float, float]:
    """The p-value of no difference, and to which side the images lean, above 0 to the higher one."""
    both = ~np.isnan(low) & ~np.isnan(high)
    low, high = low[both], high[both]
    if figure == "likeness":
        return (pairs_test(high - low), float((high - low).mean())) if len(low) > 1 else (1.0, 0.0)
    if figure in SHARES:
        low, high = low > 0.5, high > 0.5
    one, other = int((high > low).sum()), int((low > high).sum())
    return mcnemar(one, other), float(one - other)


def _with(figure: Figure, values: NDArray[Any], kind: str) -> Figure:
    """A figure with its value and interval; without, where no image has one."""
    known = values[~np.isnan(values)]
    if not len(known):
        return figure
    if len(values) == 1:
        return figure.model_copy(update={"value": float(known[0])})
    if kind in SHARES:
        value, bounds = known.mean(), interval(known)
    elif kind == "likeness":
        value, bounds = known.mean(), pairs_interval(known)
    else:
        value, bounds = np.median(known), median_interval(known)
    return figure.model_copy(update={"value": float(value), "interval": bounds})


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """With p-values after Holm's correction over all of them that have one."""
    tested = [item.p_value for item in comparisons if item.p_value is not None]
    left = iter(holm(tested))
    return [
        item if item.p_value is None else item.model_copy(update={"p_corrected": next(left)}) for item in comparisons
    ]


def ruled(comparisons: Sequence[Comparison]) -> tuple[Ruling, str]:
    """What corrected comparisons say about a sentence, and why where they leave it open."""
    marked = [figure for item in comparisons for figure in (item.lower, item.higher) if figure.mark]
    if marked:
        return "undecided", f"{marked[0].name} is {marked[0].mark}"
    if all(item.holds for item in comparisons):
        return "supported", ""
    lines: dict[int, list[Comparison]] = {}
    for item in comparisons:
        lines.setdefault(item.line, []).append(item)
    if any(all(item.reversed for item in line) for line in lines.values()):
        return "contradicted", ""
    return "undecided", "; ".join(filter(None, map(_open, lines.values())))


def _open(line: Sequence[Comparison]) -> str:
    """Why a line neither holds nor is reversed; empty where it holds."""
    failing = [item for item in line if not item.holds]
    if not failing:
        return ""
    kinds = {
        "has no figure": [item for item in failing if item.difference is None],
        "shows no difference beyond chance": [
            item for item in failing if item.difference is not None and not item.significant
        ],
        "is significantly reversed": [item for item in failing if item.reversed],
        "differs by less than asked": [item for item in failing if item.significant and item.sign > 0],
        "has draws and majorities disagree": [item for item in failing if item.significant and item.sign == 0],
    }
    said = [f"{what} in {_seeds(items)}" for what, items in kinds.items() if items]
    return f"line {line[0].line + 1} {' and '.join(said)}"


def _seeds(items: Sequence[Comparison]) -> str:
    numbers = ", ".join(str(item.seed) for item in items)
    return f"seed {numbers}" if len(items) == 1 else f"seeds {numbers}"
