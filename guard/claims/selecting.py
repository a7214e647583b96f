"""Selecting: from what a line names to one cell of the evaluation, before anything is computed."""

import math
from collections.abc import Sequence

from guard.claims.config import ClaimConfig
from guard.claims.lines import CellLine, Selector
from guard.errors import InputError, suggestion
from guard.evaluation.plan import PlannedCell, cells
from guard.threat import amount

_SHOWN = 4  # of the cells that a selector leaves to choose from


def pairs(config: ClaimConfig) -> list[tuple[int, int]]:
    """The places in the plan of the lower and the higher cell of each line. Raises InputError.

    The plan is that of one seed, and all seeds have the same.
    """
    if config.evaluate is None:
        return []
    planned = cells(config.evaluate)
    found = []
    for number, line in enumerate(config.expect):
        if isinstance(line, CellLine):
            lower, higher = (
                _place(selector, planned, f"expect[{number}].{name}", asked=line.figure == "shape-bias")
                for name, selector in (("lower", line.lower), ("higher", line.higher))
            )
            if lower == higher:
                raise InputError(
                    f"expect[{number}] compares {named(planned[lower])} with itself. Select two different cells"
                )
            found.append((lower, higher))
    return found


def named(cell: PlannedCell) -> str:
    """A cell in words: its attack, its defense, and what else a selector tells cells apart by."""
    said = [cell.knowledge] + ([f"from {cell.source_label}"] if cell.source_label else [])
    return f"{cell.label} on {cell.defense_label} ({', '.join(said)}, {cell.model_label}, {cell.threat}, {cell.goal})"


def _place(selector: Selector, planned: Sequence[PlannedCell], where: str, asked: bool) -> int:
    """The one cell that a selector selects. `asked`: of those of a defended model, which is only asked, the first."""
    left = list(range(len(planned)))
    for key, wanted in selector:
        if wanted is not None:
            kept = [place for place in left if _same(_value(planned[place], key), wanted)]
            if not kept:
                raise InputError(_none(key, wanted, [planned[place] for place in left], where))
            left = kept
    if asked:
        victims = [(planned[place].model_label, planned[place].defense_label) for place in left]
        left = [place for number, place in enumerate(left) if victims[number] not in victims[:number]]
    if len(left) > 1:
        told = [planned[place] for place in left]
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        names = ", ".join(named(cell) for cell in told[:_SHOWN])
        raise InputError(f"{where} selects {len(left)} cells: {names}{more}. {_telling(selector, told)}")
    return left[0]


def _value(cell: PlannedCell, key: str) -> str | float:
    """What a selector's key is compared with."""
    values: dict[str, str | float] = {
        "attack": cell.label,
        "defense": cell.defense_label,
        "knowledge": cell.knowledge,
        "model": cell.model_label,
        "epsilon": cell.threat.epsilon,
    }
    return values[key]


def _same(one: str | float, other: str | float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


def _none(key: str, wanted: str | float, left: Sequence[PlannedCell], where: str) -> str:
    """Why nothing is selected, and what could be."""
    known = {_said(_value(cell, key)) for cell in left}
    return f"{where} selects no cell, for no {key} is '{_said(wanted)}' there. {suggestion(_said(wanted), known)}"


def _said(value: str | float) -> str:
    return amount(value) if isinstance(value, float) else value


def _telling(selector: Selector, told: Sequence[PlannedCell]) -> str:
    """Which keys would tell the cells apart."""
    keys = [key for key, wanted in selector if wanted is None and len({_value(cell, key) for cell in told}) > 1]
    return f"Add {' or '.join(keys)}" if keys else "Evaluate one of them alone: no key of a line tells them apart"
