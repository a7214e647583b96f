import re

import pytest
import yaml
from markdown_it import MarkdownIt

from guard import Report
from guard.report.markdown import document, plain
from guard.report.tables import tables
from guard.report.text import percent, score, worst


def parsed(text: str) -> list[list[list[str]]]:
    """Tables as a Markdown reader sees them: rows of shown texts."""
    found: list[list[list[str]]] = []
    inside = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open", "th_close", "td_close"):
            inside = token.nesting == 1
        elif inside:
            found[-1][-1].append("".join(part.content for part in token.children or []))
    return found


def test_tables_parse(report: Report) -> None:
    found = parsed(document(report))
    expected = tables(report)
    assert len(found) == len(expected) + 3
    for rows, table in zip(found, expected, strict=False):
        assert rows[0] == ["defense", "clean", *table.attacks, "worst case"]
        for row, line in zip(rows[1:], table.lines, strict=True):
            scores = [score(line.cells[label]) for label in table.attacks]
            assert row == [line.defense, percent(line.clean), *scores, worst(line.worst)]
    assert found[-2][1:] == [list(item) for item in report.versions.items()]
    assert found[-1][1:] == [list(item) for item in report.plugins.items()]


@pytest.mark.parametrize(
    "name", ["a|b", "<b>x</b>", "*x*", "_x_", "small_cnn", "`x`", "[x](y)", "a\\b", "&amp;", "x\ny"]
)
def test_names_are_shown_as_they_stand(report: Report, name: str) -> None:
    cells = [cell.model_copy(update={"defense": name, "label": name}) for cell in report.cells[:1]]
    rows = parsed(document(report.model_copy(update={"cells": cells, "worst_case": []})))[0]
    shown = " ".join(name.split())
    assert (rows[0][2], rows[1][0]) == (shown, shown)
    assert plain(name).count("\n") == 0


def test_the_configuration_can_be_read_back(report: Report) -> None:
    config = {"model": "```\n# no heading", "epsilon": 0.2}
    text = document(report.model_copy(update={"config": config}))
    blocks = [token for token in MarkdownIt().parse(text) if token.type == "fence"]
    assert [yaml.safe_load(block.content) for block in blocks] == [config]
    assert re.search(r"^````yaml$", text, re.MULTILINE)


def test_members_of_a_cascade(report: Report) -> None:
    rows = parsed(document(report))[-3]
    assert rows[0] == ["cell", "member", "tried on", "broke", "forwards per image", "backwards per image"]
    name = "apgd on jpeg, adaptive (small-cnn on digits, linf 0.2, untargeted, seed 0)"
    assert rows[1] == [name, "apgd-ce", "560", "500", "41.2", "40"]
    assert rows[2] == ["", "square|2", "60", "38", "1,204", "0"]
    assert "What broke it" not in document(report.model_copy(update={"cells": report.cells[:2]}))


def test_median_distances_are_notes(report: Report) -> None:
    text = document(report)
    assert text.count("- Median l2 distance of apgd: 0.26 on none.") == 2
    assert text.count("Median") == 2
