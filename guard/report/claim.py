"""What is shown of a claim: a table in the terminal, a page, and JSON for other programs."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.claims.lines import SHARES
from guard.claims.verdict import Comparison, Figure, Verdict
from guard.errors import InputError
from guard.report.claim_chart import drawn
from guard.report.claim_words import chance, difference, method, outcome, said, shown
from guard.report.pictures import png
from guard.report.text import many

if TYPE_CHECKING:
    from jinja2 import Template

_OUTCOMES = {"holds": "green", "reversed": "red", "undecided": "yellow"}


def show(verdict: Verdict, console: Console) -> None:
    """Print the sentence and what was measured of each line in each seed."""
    console.print(Text(f"\n{verdict.claim}", style="bold"))
    console.print(
        Text(f"{many(verdict.images, 'image')}; figures [95 % interval], shares in %; {method(verdict.comparisons)}")
    )
    for rows in lines(verdict):
        console.print(Text(f"\n{said(rows)}"))
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for header in ("seed", "lower", "higher", "difference", "p", ""):
            table.add_column(header, justify="right" if header else "left", no_wrap=header not in ("lower", "higher"))
        for item in rows:
            told, figures = outcome(item), (shown(item, item.lower), shown(item, item.higher), difference(item))
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
        method=method(verdict.comparisons),
        charts=[drawn(chart) for chart in verdict.charts],
        kinds=("shape and texture", "shape", "texture: a patch, enlarged"),
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


def end(rows: Sequence[Comparison]) -> float:
    """Where the scale of a line ends: at 1 for shares, else at its largest figure."""
    if rows[0].figure in SHARES:
        return 1.0
    known = [bound for item in rows for figure in (item.lower, item.higher) for bound in (figure.interval or ())]
    known += [figure.value for item in rows for figure in (item.lower, item.higher) if figure.value is not None]
    return max([bound for bound in known if isfinite(bound)], default=1.0) or 1.0


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
        "chance": chance,
        "difference": difference,
        "end": end,
        "many": many,
        "outcome": outcome,
        "said": said,
    }
    environment.filters["png"] = png
    environment.globals["shown"] = shown
    return environment.get_template("claim.html.j2")
