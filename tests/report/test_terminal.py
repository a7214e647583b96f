import io
import re

import pytest
from rich.console import Console

from guard import Report
from guard.evaluation.result import Cell
from guard.report.tables import tables
from guard.report.terminal import show
from guard.report.text import count, interval, percent, score, seconds, worst


def shown(report: Report, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(report, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def wide(report: Report) -> Report:
    """Many attacks with long labels."""
    cells = [
        cell.model_copy(update={"label": f"{cell.label}-with-a-long-label-{number}"})
        for number in range(6)
        for cell in report.cells
    ]
    return report.model_copy(update={"cells": cells})


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("change", [lambda report: report, wide])
def test_no_number_is_truncated(report: Report, width: int, change: object) -> None:
    report = change(report)  # type: ignore[operator]
    text = shown(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    figures = re.findall(r"\d+\.\d(?: \?)?(?: \[[\d., ]+\])?|<= [\d.]+ \(incomplete\)", text)
    for table in tables(report):
        for line in table.lines:
            for cell in line.cells.values():
                expected = score(cell)
                assert expected in (*figures, "n/a", "INVALID")
            if line.worst:
                assert worst(line.worst) in text


def test_each_game_has_its_own_table(report: Report) -> None:
    text = shown(report, 100)
    assert len(re.findall("^defense  ", text, re.MULTILINE)) == len(tables(report)) == 6
    for heading in ("digits, linf 0.2", "cifar10, linf 8/255", "cifar10, l2 0.5"):
        assert heading in text
    assert text.count("oblivious attacker;") == 1


def test_reasons_and_cost_stand_below(report: Report) -> None:
    text = " ".join(shown(report, 100).split())
    for cell in report.cells:
        assert cell.reason in text
    assert "1,204 shards computed, 12 from the cache, 1 min 20 s, on cpu" in text


def test_labels_are_no_markup(report: Report) -> None:
    cells = [cell.model_copy(update={"label": "[red]x[/]", "defense": "[bold]"}) for cell in report.cells[:1]]
    text = shown(report.model_copy(update={"cells": cells, "worst_case": []}), 100)
    assert "[red]x[/]" in text
    assert "[bold]" in text


def test_a_long_label_folds_at_its_hyphens(report: Report) -> None:
    cells = [cell.model_copy(update={"label": "fast-autoattack"}) for cell in report.cells[:1]]
    text = shown(report.model_copy(update={"cells": cells, "worst_case": []}), 100)
    lines = [line.split() for line in text.splitlines()]
    assert any("fast-" in line for line in lines)
    assert any("autoattack" in line for line in lines)


def test_colours_mark_what_is_not_valid(report: Report) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    show(report, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[1;31mINVALID" in text


def test_figures_in_words(report: Report) -> None:
    row: Cell = report.cells[0].model_copy(
        update={"robust_accuracy": 0.0321, "robust_accuracy_interval": (0.019, 0.051)}
    )
    assert (percent(0.0321), interval(row), worst(row)) == ("3.2", "[1.9, 5.1]", "3.2 [1.9, 5.1]")
    assert worst(row.model_copy(update={"status": "INCOMPLETE"})) == "<= 3.2 (incomplete)"
    assert worst(row.model_copy(update={"status": "INCOMPLETE", "robust_accuracy": None})) == "incomplete"
    assert worst(row.model_copy(update={"status": "SUSPECT"})) == "3.2 ? [1.9, 5.1]"
    assert (count(12.0), count(40.52), count(1204.4), count(None)) == ("12", "40.5", "1,204", "-")
    assert (seconds(0.44), seconds(41.2), seconds(200), seconds(7500)) == ("0.4 s", "41 s", "3 min 20 s", "2 h 5 min")
