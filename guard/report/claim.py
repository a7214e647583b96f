"""What is shown of a claim: a table in the terminal, a page, and JSON for other programs."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.claims.verdict import LEVEL, Comparison, Figure, Verdict
from guard.errors import InputError
from guard.report.text import NOT_COMPUTED, many, percent

if TYPE_CHECKING:
    from jinja2 import Template

_OUTCOMES = {"holds": "green", "reversed": "red", "undecided": "yellow"}


def show(verdict: Verdict, console: Console) -> None:
    """Print the sentence and what was measured of each line in each seed."""
    console.print(Text(f"\n{verdict.claim}", style="bold"))
    console.print(Text(f"{many(verdict.images, 'image')}; shares in % [95 % interval]; {_method()}"))
    for rows in lines(verdict):
        console.print(Text(f"\n{said(rows)}"))
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for header in ("seed", "lower", "higher", "difference", "p"):
            table.add_column(header, justify="right", no_wrap=True)
        table.add_column("")
        for item in rows:
            told, figures = outcome(item), (share(item.lower), share(item.higher), points(item))
            cells = [Text(text) for text in (str(item.seed), *figures, chance(item.p_corrected))]
            table.add_row(*cells, Text(told, style=_OUTCOMES[told]))
        console.print(table)
    for mark in dict.fromkeys(f"{it.name} is {it.mark}" for it in _figures(verdict) if it.mark):
        console.print(Text(mark, style="red"))


def page(verdict: Verdict) -> str:
    """A whole HTML document that refers to nothing but the reports of its seeds beside it."""
    return _template().render(
        verdict=verdict,
        lines=lines(verdict),
        method=_method(),
        config=yaml.safe_dump(verdict.config, sort_keys=False, allow_unicode=True),
        light=(),
        dark=(),
    )


def save(verdict: Verdict, folder: Path) -> None:
    """Write claim.json and index.html into a folder. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "claim.json").write_text(verdict.model_dump_json(indent=2), encoding="utf-8")
        (folder / "index.html").write_text(page(verdict), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the folder '{folder}' cannot be written: {error.strerror}. Give another folder") from error


def lines(verdict: Verdict) -> list[list[Comparison]]:
    """The comparisons of each line."""
    return [list(rows) for _, rows in groupby(verdict.comparisons, key=lambda item: item.line)]


def said(rows: Sequence[Comparison]) -> str:
    """What a line expects: '1: low on at, adaptive, is below pgd on at, adaptive, by at least 5 points'."""
    line = rows[0]
    margin = f", by at least {100 * line.by:g} points" if line.by else ""
    return f"{line.line + 1}: {line.lower.name} is below {line.higher.name}{margin}"


def outcome(item: Comparison) -> str:
    """Whether a line holds in a seed: holds, reversed or undecided."""
    return "holds" if item.holds else "reversed" if item.reversed else "undecided"


def share(figure: Figure) -> str:
    """A figure in percent with its interval: '49.9 [45.9, 53.9]'; the word for what is wrong with it first."""
    bounds = figure.interval
    known = f"{percent(figure.share)} [{percent(bounds[0])}, {percent(bounds[1])}]" if bounds else ""
    return " ".join(filter(None, (figure.mark.split(":")[0], known))) or NOT_COMPUTED


def points(item: Comparison) -> str:
    """A difference in points: '+4.2'."""
    return NOT_COMPUTED if item.difference is None else f"{100 * item.difference:+.1f}"


def chance(p_value: float | None) -> str:
    """A p-value: '0.031', '< 0.0001'."""
    if p_value is None:
        return NOT_COMPUTED
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def _method() -> str:
    return f"p: exact McNemar test of the same images, Holm's correction for all rows, {LEVEL:g} decides"


def _figures(verdict: Verdict) -> list[Figure]:
    return [figure for item in verdict.comparisons for figure in (item.lower, item.higher)]


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("guard", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": share,
        "points": points,
        "chance": chance,
        "outcome": outcome,
        "many": many,
        "said": said,
    }
    return environment.get_template("claim.html.j2")
