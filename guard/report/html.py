"""The page: one self-contained file; and its tables alone, for notebooks."""

from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import yaml

from guard.evaluation.result import Results, Row, WorstCase
from guard.report import text
from guard.report.colours import level, scale
from guard.report.curves import HEIGHT, WIDTH, curves
from guard.report.findings import findings, overstatements
from guard.report.learned import learned
from guard.report.learned_words import projected
from guard.report.pictures import gallery
from guard.report.tables import SCORED, Setting, tables, unique

if TYPE_CHECKING:
    from jinja2 import Template

_WAYS = {
    "gradient": "along gradients through the whole defense",
    "bpda": "along gradients in which a stand-in takes the place of each stage that has none",
    "relax": "along gradients through the stand-in that the defense names for itself",
    "queries": "by the answers of the defended model",
    "learned": "by what the attack learned on training images; it asks nothing about the images it attacks",
    "oblivious": "as one who does not know what the defense adds after training",
    "transfer": "by what was made, or learned, elsewhere",
}
"""How each candidate tries."""


def page(report: Results) -> str:
    """A whole HTML document that refers to nothing outside itself."""
    return _template("page.html.j2").render(
        **_shared(report),
        overstatements=overstatements(report),
        learned=learned(report),
        curves=curves(report),
        ways=[(name, said) for name, said in _WAYS.items() if name in _tried(report)],
        parted=[cell for cell in report.cells if cell.parts],
        galleries=[
            (cell, gallery(cell, report.pictures[cell.key])) for cell in report.cells if cell.key in report.pictures
        ],
        warnings=[row for row in (*report.cells, *report.worst_case) if row.status not in ("VALID", "NOT_APPLICABLE")],
        config=yaml.safe_dump(report.config, sort_keys=False, allow_unicode=True),
    )


def fragment(report: Results) -> str:
    """The tables of a report as HTML that can stand inside another page; its style reaches nothing else there."""
    return _template("fragment.html.j2").render(**_shared(report))


def _shared(report: Results) -> dict[str, Any]:
    """What the page and the fragment both show."""
    groups = groupby(tables(report), key=lambda table: table.setting)
    return {
        "report": report,
        "findings": findings(report),
        "settings": [(setting, list(members)) for setting, members in groups],
        "light": scale(dark=False),
        "dark": scale(dark=True),
    }


@cache
def _template(name: str) -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("guard", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": text.percent,
        "interval": text.interval,
        "count": text.count,
        "distance": text.distance,
        "seconds": text.seconds,
        "level": level,
        "score": lambda row: text.score(row).replace(text.AT_MOST, "\N{LESS-THAN OR EQUAL TO}"),
        "hover": _hover,
        "where": text.where,
        "projected": projected,
        "fates": _fates,
        "setting": Setting.of,
        "points": lambda difference: f"{100 * difference:+.1f}",
    }
    environment.globals |= {"work": text.work, "unique": unique, "SCORED": SCORED, "WIDTH": WIDTH, "HEIGHT": HEIGHT}
    return environment.get_template(name)


def _tried(report: Results) -> set[str]:
    """The names of the candidates."""
    return {way.name for cell in report.cells for way in cell.candidates}


def _hover(row: Row) -> str:
    """What a figure means, said in full."""
    said = [text.where(row)]
    if row.robust_accuracy is not None:
        said.append(f"robust {text.percent(row.robust_accuracy)} % {text.interval(row)} of {row.images:,} images")
    if row.attack_success_rate is not None and row.attack_success_denominator is not None:
        said.append(
            f"success {text.percent(row.attack_success_rate)} % of {row.attack_success_denominator:,} that count"
        )
    if row.robust_accuracy_8bit is not None:
        said.append(f"in 8 bits {text.percent(row.robust_accuracy_8bit)} %")
    if projected(row):
        said.append("projected onto the ball")
    if row.status != "VALID":
        said.append(f"{row.status}: {row.reason}")
    return "; ".join(said)


def _fates(row: WorstCase) -> list[tuple[str, str, float]]:
    """What became of the images, as (kind, label, share): robust, broken first by each attack, wrong when clean."""
    clean, robust = row.clean_accuracy or 0.0, row.robust_accuracy or 0.0
    first = [("broken", label, images / row.images) for label, images in row.broken_first.items()]
    parts = [("robust", "robust", robust), *first, ("wrong", "wrong when clean", 1 - clean)]
    return [part for part in parts if part[2] > 0]
