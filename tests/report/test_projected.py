"""An attack that learned without a bound never looks like one that kept to epsilon."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from guard import Report
from guard.evaluation.result import Cell, Fit
from guard.report.html import fragment, page
from guard.report.markdown import document
from guard.report.tables import tables
from guard.report.terminal import show
from guard.training.record import Epoch

NOTE = (
    "atn (projected) learned without a bound: what lies outside l2 0.5 counts by its projection, which it did not "
    "learn to make. Its distance says how far it goes."
)
DISTANCE = "Median l2 distance of atn: 0.26 on none."


def terminal(report: Report) -> str:
    console = Console(file=io.StringIO(), width=400)
    show(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


FACES = {"terminal": terminal, "markdown": document, "page": page, "fragment": fragment}
every = pytest.mark.parametrize("face", FACES.values(), ids=FACES)


def nearest(report: Report, label: str, bound: float | None, learned: bool = True, **changes: Any) -> Report:
    """PGD and a minimum-distance attack in l2, that learned with a bound, without one, or not at all."""
    fit = Fit(
        attack={"name": label},
        model="resnet18-cifar",
        dataset="cifar10",
        images=100,
        held_out=0,
        shared=0,
        goal="untargeted",
        norm="l2",
        epsilon=bound,
        seed=0,
        forwards=300,
        backwards=300,
        seconds=3,
        epochs=(Epoch(epoch=1, lr=0.1, loss=1, seconds=3),),
        kept=1,
    )
    cells = [cell for cell in report.cells if (cell.model, cell.norm) == ("resnet18-cifar", "l2")]
    (one,) = [cell for cell in cells if cell.curve]
    pgd: Cell = next(cell for cell in cells if cell.label == "pgd")
    one = one.model_copy(update={"label": label, "fit": fit if learned else None})
    shown = [cell.model_copy(update=changes) for cell in (one, pgd)]
    return report.model_copy(update={"cells": shown, "worst_case": []})


def headings(face: Any, text: str) -> list[str]:
    """The attacks that the columns of the first table are headed by."""
    if face is terminal:
        above, line = re.findall(r"^(.*)\n(defense .*)$", text, re.MULTILINE)[0]
        first = f"{above.strip()} " if above.startswith(" ") else ""  # a label that was folded
        names = re.split(r"\s{2,}", line.strip())[2:-1]
        return [first + names[0], *names[1:]]
    if face is document:
        line = next(line for line in text.splitlines() if line.startswith("| defense"))
        return [part.strip() for part in line.split("|")[3:-2]]
    head = text[text.index("<thead>") : text.index("</thead>")]
    return re.findall(r'<th scope="col">(.*?)</th>', head)[2:-1]


@every
def test_its_column_says_that_it_is_projected_and_a_line_what_that_means(report: Report, face: Any) -> None:
    text = face(nearest(report, "atn", None))
    assert headings(face, text) == ["atn (projected)", "pgd"]
    assert text.count(NOTE) == 1
    assert text.count(DISTANCE) == 1


@every
@pytest.mark.parametrize(
    ("bound", "learned"), [(0.5, True), (None, False)], ids=["learned with a bound", "not learned"]
)
def test_no_other_attack_is_said_to_be_projected(report: Report, face: Any, bound: Any, learned: bool) -> None:
    text = face(nearest(report, "atn", bound, learned))
    assert headings(face, text) == ["atn", "pgd"]
    assert DISTANCE in text
    assert not re.search(r"\(projected\)|projected onto|projected ·|without a bound", text)


@every
def test_nothing_is_projected_where_the_threat_has_no_bound_either(report: Report, face: Any) -> None:
    text = face(nearest(report, "atn", None, epsilon=float("inf")))
    assert headings(face, text) == ["atn", "pgd"]
    assert "(projected)" not in text


def test_a_column_is_projected_where_any_of_its_cells_is(report: Report) -> None:
    """An INVALID cell has learned nothing that could be told."""
    shown = nearest(report, "atn", None)
    failed = shown.cells[0].model_copy(update={"defense": "jpeg", "fit": None, "status": "INVALID", "curve": ()})
    (table,) = tables(shown.model_copy(update={"cells": [failed, *shown.cells]}))
    assert list(map(table.heading, table.attacks)) == ["atn (projected)", "pgd"]


@pytest.mark.parametrize("width", range(58, 80))
def test_the_label_folds_but_is_not_cut_in_a_narrow_terminal(report: Report, width: int) -> None:
    shown = nearest(report, "atn", None)
    more = [shown.cells[1].model_copy(update={"label": label}) for label in ("fgsm", "apgd")]
    console = Console(file=io.StringIO(), width=width)
    show(shown.model_copy(update={"cells": [*more, *shown.cells], "worst_case": report.worst_case}), console)
    lines: list[str] = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert any(line.startswith("defense") and "(projected)" in line for line in lines)
    assert any(line.startswith("none") and " 97.9" not in line and " 18.4" in line for line in lines)


def test_the_page_says_so_beside_figures_pictures_and_distances(report: Report) -> None:
    text = page(nearest(report, "atn", None))
    assert re.findall(r'title="([^"]*projected[^"]*)"', text) == [
        "atn on none, adaptive; robust 18.4 % [14.5, 22.2] of 1,000 images; success 80.2 % of 930 that count; "
        "in 8 bits 18.5 %; projected onto the ball"
    ]
    assert '<summary>atn on none, adaptive <span class="muted">· projected · robust 18.4 %</span></summary>' in text
    assert '<summary>pgd on none, adaptive <span class="muted">· robust 19.2 %</span></summary>' in text
    distances = text[text.index('<section id="distances">') : text.index('<section id="learned">')]
    assert distances.count('atn on none, adaptive<div class="small">learned without a bound</div>') == 1
