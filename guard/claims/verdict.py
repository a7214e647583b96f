"""Verdict: what was measured of each line in each seed, and what that says about the sentence."""

from collections.abc import Sequence
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from guard.statistics import holm, interval, mcnemar

Ruling = Literal["supported", "contradicted", "undecided"]

LEVEL = 0.05
"""Of all lines and seeds together, corrected by Holm's method."""
_ROUNDED = 1e-12  # what a difference of two fractions may lack of the margin it has


class Figure(BaseModel):
    """One of the two shares that a line compares."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    """What it is of: 'low on at, adaptive'; 'blocks of 4'."""
    share: float | None = None
    """A fraction of all images; None where there is none."""
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
    lower: Figure
    higher: Figure
    by: float = 0.0
    """How much lower the one must be at least."""
    difference: float | None = None
    """higher - lower: above 0 as expected."""
    sign: int = 0
    """1 as expected, -1 the other way round, 0 where the shares, or the images that they differ on, show neither."""
    p_value: float | None = None
    """That the two differ by chance: McNemar's exact test on the images, two-sided."""
    p_corrected: float | None = None
    """The same after Holm's correction for all lines and seeds."""

    @property
    def significant(self) -> bool:
        """Whether the two differ by more than chance."""
        return self.p_corrected is not None and self.p_corrected < LEVEL

    @property
    def wide(self) -> bool:
        """Whether the difference is as large as expected."""
        return self.difference is not None and self.difference >= self.by - _ROUNDED

    @property
    def holds(self) -> bool:
        """Whether it is as expected."""
        return self.significant and self.sign > 0 and self.wide

    @property
    def reversed(self) -> bool:
        """Whether it is the other way round."""
        return self.significant and self.sign < 0


class Verdict(BaseModel):
    """What `guard.claim` returns: the sentence, what came out, and why."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

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
    config: dict[str, Any]
    versions: dict[str, str]

    def __str__(self) -> str:
        return f"{self.verdict}: {self.claim}" + (f" ({self.why})" if self.why else "")


def compared(
    line: int, seed: int, lower: Figure, higher: Figure, by: float | None, stands: Sequence[NDArray[Any]]
) -> Comparison:
    """A line in a seed, from how far each image stands under the lower and the higher figure: bool or float (N,).

    Shares of draws are compared by their mean, and counted as standing above one half.
    """
    low, high = stands
    flags = low > 0.5, high > 0.5
    one, other = int((flags[1] & ~flags[0]).sum()), int((flags[0] & ~flags[1]).sum())
    difference = float(high.mean() - low.mean())
    sign = 1 if one > other and difference > 0 else -1 if one < other and difference < 0 else 0
    return Comparison(
        line=line,
        seed=seed,
        lower=lower.model_copy(update={"share": float(low.mean()), "interval": interval(low)}),
        higher=higher.model_copy(update={"share": float(high.mean()), "interval": interval(high)}),
        by=by or 0.0,
        difference=difference,
        sign=sign,
        p_value=mcnemar(one, other),
    )


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
        "shows no difference beyond chance": [item for item in failing if not item.significant],
        "is significantly reversed": [item for item in failing if item.reversed],
        "differs by less than asked": [item for item in failing if item.significant and item.sign > 0],
        "has draws and majorities disagree": [item for item in failing if item.significant and item.sign == 0],
    }
    said = [f"{what} in {_seeds(items)}" for what, items in kinds.items() if items]
    return f"line {line[0].line + 1} {' and '.join(said)}"


def _seeds(items: Sequence[Comparison]) -> str:
    numbers = ", ".join(str(item.seed) for item in items)
    return f"seed {numbers}" if len(items) == 1 else f"seeds {numbers}"
