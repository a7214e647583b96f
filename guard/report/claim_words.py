"""How a claim's figures are written: shares in percent, others with three digits, each with its interval."""

from collections.abc import Sequence

from guard.claims.lines import SHARES
from guard.claims.verdict import LEVEL, Comparison, Figure
from guard.report.text import NOT_COMPUTED, percent

_KINDS = {"shape-bias": "shape bias", "likeness": "likeness of perturbations", "seconds": "seconds per image"}


def said(rows: Sequence[Comparison]) -> str:
    """What a line expects: '1: low on at, adaptive, is below pgd on at, adaptive, by at least 5 points'."""
    line = rows[0]
    unit = "points" if line.figure in SHARES else "%"
    margin = f", by at least {100 * line.by:g} {unit}" if line.by else ""
    kind = f"jump of layer {line.layer}" if line.layer else _KINDS.get(line.figure, "")
    return f"{line.line + 1}: {kind + ': ' if kind else ''}{line.lower.name} is below {line.higher.name}{margin}"


def outcome(item: Comparison) -> str:
    """Whether a line holds in a seed: holds, reversed or undecided."""
    return "holds" if item.holds else "reversed" if item.reversed else "undecided"


def shown(item: Comparison, figure: Figure) -> str:
    """A figure with its interval: '49.9 [45.9, 53.9]' in percent; the word for what is wrong with it first."""
    mark = figure.mark.split(":")[0]
    if figure.value is None:
        return mark or NOT_COMPUTED
    bounds = [_number(item, bound) for bound in figure.interval or ()]
    known = _number(item, figure.value) + (f" [{bounds[0]}, {bounds[1]}]" if bounds else "")
    return " ".join(filter(None, (mark, known)))


def difference(item: Comparison) -> str:
    """A difference in points: '+4.2'; of what is no share: '+0.0123'."""
    if item.difference is None:
        return NOT_COMPUTED
    return f"{100 * item.difference:+.1f}" if item.figure in SHARES else f"{item.difference:+.3g}"


def chance(p_value: float | None) -> str:
    """A p-value: '0.031', '< 0.0001'."""
    if p_value is None:
        return NOT_COMPUTED
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def method(rows: Sequence[Comparison]) -> str:
    """What p is, in words."""
    kinds = {item.figure for item in rows}
    tests = ["exact McNemar test"] if kinds & set(SHARES) else []
    tests += ["exact sign test of the jumps"] if "jump" in kinds else []
    tests += ["Hoeffding's test of the likeness"] if "likeness" in kinds else []
    untested = "; seconds are measured once and not tested" if "seconds" in kinds else ""
    if not tests:
        return untested.removeprefix("; ")
    return f"p: {', '.join(tests)} of the same images, Holm's correction for all rows, {LEVEL:g} decides{untested}"


def _number(item: Comparison, value: float) -> str:
    return percent(value) if item.figure in SHARES else f"{value:.3g}"
