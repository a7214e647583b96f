"""report.md: the tables of a report, its configuration and what it was computed with."""

import re
from collections.abc import Iterable, Sequence

import yaml

from guard.evaluation.result import Results
from guard.report.findings import findings
from guard.report.tables import Setting, Table, tables
from guard.report.text import count, percent, score, where, work, worst

_SPECIAL = re.compile(
    r"[\\`*|$~]"
    r"|<(?![=\s])|&(?=#?\w+;)"  # what could begin a tag or an entity
    r"|\](?=[(\[:])"  # or a link; an interval stays readable
    r"|(?<!\w)_|_(?!\w)"  # an underscore inside a word is a letter
)
_EXPLAINED = (
    "Robust accuracy, in percent, is the share of all images still predicted as their true label: an upper bound under "
    "the attacks run. The worst case takes each image's worst attack; its 95 % interval stands beside it."
)


def document(report: Results) -> str:
    """The whole of report.md."""
    parts = ["# Robustness report", "\n".join(f"- {plain(finding)}" for finding in findings(report)), _EXPLAINED]
    setting = None
    for table in tables(report):
        if table.setting != setting:
            setting = table.setting
            parts.append(f"## {plain(str(setting))}, {table.images:,} images")
        parts += [f"### {plain(table.attacker)} attacker", _scores(table)]
        parts += ["\n".join(f"- {plain(note)}" for note in table.notes)] * bool(table.notes)
    parts += _members(report)
    parts += ["## How it was computed", plain(work(report)), "### Configuration", _fenced(_yaml(report.config))]
    parts += ["### Versions", _grid(["what", "version"], report.versions.items())]
    parts += ["### Plugins", _grid(["component", "from"], report.plugins.items())]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it stands, on one line."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", " ".join(text.split()))


def _scores(table: Table) -> str:
    rows = [
        [line.defense, percent(line.clean)]
        + [score(line.cells[label]) if label in line.cells else "" for label in table.attacks]
        + [worst(line.worst)]
        for line in table.lines
    ]
    return _grid(["defense", "clean", *map(table.heading, table.attacks), "worst case"], rows, right=True)


def _members(report: Results) -> list[str]:
    """What each member of a cascade of attacks did, under a heading; nothing where there is no cascade."""
    rows = [
        [
            f"{where(cell)} ({Setting.of(cell)})" if number == 0 else "",
            part.name,
            f"{part.images:,}",
            f"{part.broke:,}",
            count(part.forwards_per_image),
            count(part.backwards_per_image),
        ]
        for cell in report.cells
        for number, part in enumerate(cell.parts)
    ]
    header = ["cell", "member", "tried on", "broke", "forwards per image", "backwards per image"]
    said = "The members of a cascade of attacks, each tried on the images that those before it left."
    return ["## What broke it", said, _grid(header, rows, right=True)] if rows else []


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]], right: bool = False) -> str:
    """A table; `right` aligns all but the first column to the right."""
    rule = ["---"] + ["---:" if right else "---"] * (len(header) - 1)
    body = [[plain(text) for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [[plain(text) for text in header], rule, *body])


def _yaml(config: object) -> str:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _fenced(text: str) -> str:
    """A fence longer than any inside the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text + "`")))
    return f"{fence}yaml\n{text}{fence}"
