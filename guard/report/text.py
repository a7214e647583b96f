"""How figures are written: percentages with one decimal, and a mark on each that is not simply valid."""

from collections.abc import Sequence

from guard.evaluation.result import Cell, Results, Row

NOT_COMPUTED = "-"
AT_MOST = "<="
_WORK = {"computed_shards": "shards computed", "cached_shards": "from the cache"}


def percent(share: float | None) -> str:
    """A share in percent with one decimal, without the sign."""
    return NOT_COMPUTED if share is None else f"{100 * share:.1f}"


def interval(row: Row) -> str:
    """The interval of a robust accuracy in percent: '[57.2, 65.0]'; empty where there is none."""
    bounds = row.robust_accuracy_interval
    return f"[{percent(bounds[0])}, {percent(bounds[1])}]" if bounds else ""


def score(row: Row) -> str:
    """The robust accuracy of a cell in percent, or what stands in its place."""
    if row.status == "NOT_APPLICABLE":
        return "n/a"
    if row.status == "INVALID":
        return "INVALID"
    if row.status == "INCOMPLETE":
        known = row.robust_accuracy is not None
        return f"{AT_MOST} {percent(row.robust_accuracy)} (incomplete)" if known else "incomplete"
    return percent(row.robust_accuracy) + (" ?" if row.status == "SUSPECT" else "")


def worst(row: Row | None) -> str:
    """A worst case with its interval; one that is incomplete has none."""
    if row is None:
        return NOT_COMPUTED
    return score(row) if row.status == "INCOMPLETE" else f"{score(row)} {interval(row)}".strip()


def where(row: Row) -> str:
    """Which cell, in words."""
    what = row.label if isinstance(row, Cell) else "worst case"
    source = f" from {row.source}" if row.source else ""
    return f"{what} on {row.defense}, {row.knowledge}{source}"


def distance(value: float | None) -> str:
    """A distance with three digits: '0.0314', '1.26', 'inf'."""
    return NOT_COMPUTED if value is None else f"{value:.3g}"


def count(value: float | None) -> str:
    """A mean count, such as forwards per image: '12', '40.5', '1,204'."""
    if value is None:
        return NOT_COMPUTED
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def seconds(value: float | None) -> str:
    """A duration: '0.4 s', '41 s', '3 min 20 s', '2 h 5 min'."""
    if value is None:
        return NOT_COMPUTED
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def many(number: int, noun: str) -> str:
    """'1 image', '54,000 images'."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def joined(words: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def work(report: Results) -> str:
    """What was computed, what the cache gave, and how long it took; says what of it the run recorded."""
    run = report.run
    parts = [f"{run[key]:,} {text}" for key, text in _WORK.items() if key in run]
    parts += [seconds(float(run["seconds"]))] if "seconds" in run else []
    parts += [f"on {run['device']}"] if "device" in run else []
    return ", ".join(parts)
