import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from guard import Report
from guard.evaluation.result import Cell, WorstCase
from guard.report.colours import contrast, level, scale
from guard.report.curves import curves
from guard.report.html import fragment, page
from guard.report.pictures import gallery
from guard.report.tables import tables

EVIL = "<script>alert(1)</script>\"'&"


class Reader(HTMLParser):
    """Tags with their attributes, and the text of the heat maps' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._heat = self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._heat = dict(attrs).get("class") == "heat"
        if self._heat and tag == "tr":
            self.rows.append([])
        gap = dict(attrs).get("class") == "gap"
        if self._heat and tag in ("td", "th"):
            self._inside = not gap
            if not gap:
                self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._heat and self._inside:
            self.rows[-1][-1] += data


def evil(report: Report) -> Report:
    """Everything that a plugin or a file names."""
    text = {"defense": EVIL, "model": EVIL, "dataset": EVIL, "goal": EVIL, "reason": EVIL, "knowledge": EVIL}
    cells = [
        cell.model_copy(
            update=text
            | {"label": EVIL, "source": EVIL}
            | {"parts": tuple(part.model_copy(update={"name": EVIL}) for part in cell.parts)}
        )
        for cell in report.cells
    ]
    rows = [row.model_copy(update=text | {"broken_first": {EVIL: 3}}) for row in report.worst_case]
    names = dict.fromkeys(("labels", "predictions", "clean_predictions"), (EVIL,) * 8)
    pictures = {key: found.model_copy(update=names) for key, found in report.pictures.items()}
    update = {"cells": cells, "worst_case": rows, "pictures": pictures}
    update |= {"plugins": {EVIL: EVIL}, "versions": {EVIL: EVIL}, "config": {EVIL: EVIL}, "run": {"device": EVIL}}
    return report.model_copy(update=update)


@pytest.mark.parametrize("write", [page, fragment])
def test_names_are_escaped(report: Report, write: object) -> None:
    text = write(evil(report))  # type: ignore[operator]
    found = Reader(text)
    assert "script" not in {tag for tag, _ in found.tags}
    assert "&lt;script&gt;" in text
    allowed = {"class", "title", "style", "scope", "colspan", "id", "href", "src", "alt", "open"}
    allowed |= {"lang", "charset", "name", "content"}
    allowed |= {"viewbox", "role", "aria-label", "d", "points", "cx", "cy", "r"}
    assert {name for _, attributes in found.tags for name in attributes} <= allowed


@pytest.mark.parametrize("write", [page, fragment])
def test_nothing_outside_the_file_is_referred_to(report: Report, write: object) -> None:
    text = write(report)  # type: ignore[operator]
    assert not re.search(r"https?:|url\(|@import", text)
    for tag, attributes in Reader(text).tags:
        assert tag not in ("link", "script", "iframe", "object")
        assert (attributes.get("src") or "data:").startswith("data:image/png;base64,") or "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")


def test_links_inside_the_page_lead_somewhere(report: Report) -> None:
    tags = Reader(page(report)).tags
    targets = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert targets == {"#" + str(attributes["id"]) for tag, attributes in tags if attributes.get("id")} - {
        "#candidates"
    }


@pytest.mark.parametrize("write", [page, fragment])
def test_the_matrix_shows_the_numbers_of_the_report(report: Report, write: object) -> None:
    rows = Reader(write(report)).rows  # type: ignore[operator]
    body = iter(row for row in rows if row[0] != "defense")
    for table in tables(report):
        for line in table.lines:
            name, clean, *scores, worst = (text.strip() for text in next(body))
            assert name == line.defense
            assert clean == ("-" if line.clean is None else f"{100 * line.clean:.1f}")
            for shown, cell in zip(scores, line.cells.values(), strict=True):
                if cell.status in ("VALID", "SUSPECT"):
                    mark = " ?" if cell.status == "SUSPECT" else ""
                    assert shown == f"{100 * (cell.robust_accuracy or 0):.1f}{mark}"
                else:
                    assert shown == {"INVALID": "INVALID", "NOT_APPLICABLE": "n/a"}[cell.status]
            if line.worst is None:
                assert worst == ""
            elif line.worst.status == "INCOMPLETE":
                assert worst == f"≤ {100 * (line.worst.robust_accuracy or 0):.1f} (incomplete)"
            else:
                low, high = line.worst.robust_accuracy_interval or (0, 0)
                assert worst.endswith(f"[{100 * low:.1f}, {100 * high:.1f}]")
                assert worst.startswith(f"{100 * (line.worst.robust_accuracy or 0):.1f}")
    assert next(body, None) is None


def test_every_warning_stands_on_the_page_with_its_reason(report: Report) -> None:
    text = page(report)
    section = text[text.index('id="warnings"') : text.index('id="config"')]
    marked = [row for row in (*report.cells, *report.worst_case) if row.status not in ("VALID", "NOT_APPLICABLE")]
    assert section.count("<tr>") == len(marked) + 1
    assert f"{len(marked)} warnings" in text
    left_out = [cell for cell in report.cells if cell.status == "NOT_APPLICABLE"]
    assert left_out
    assert all(f"Left out: {cell.defense}: {escape(cell.reason)}" in text for cell in left_out)


def test_a_report_without_pictures_warnings_or_cells_still_has_a_page(report: Report) -> None:
    bare = report.model_copy(update={"cells": [], "worst_case": [], "pictures": {}, "run": {}})
    assert "Nothing was evaluated." in page(bare)
    valid = report.model_copy(update={"cells": report.cells[:3], "worst_case": report.worst_case[:1], "pictures": {}})
    text = page(valid)
    assert 'id="pictures"' not in text
    assert 'id="warnings"' not in text


def test_the_notebook_gets_the_fragment(report: Report) -> None:
    assert report._repr_html_() == fragment(report)
    assert "<html" not in fragment(report)


def test_style_of_the_fragment_reaches_nothing_else(report: Report) -> None:
    text = fragment(report)
    style = text[text.index("<style>") + 7 : text.index("</style>")].strip()
    depth, outermost = 0, []
    for part in re.split(r"([{}])", style):
        if part == "{":
            depth += 1
        elif part == "}":
            depth -= 1
        elif depth == 0 and part.strip():
            outermost.append(part.strip())
    assert outermost == [".guard-report"]


@pytest.mark.parametrize("dark", [False, True])
def test_figures_are_readable_on_every_colour(dark: bool) -> None:
    shades = scale(dark)
    assert all(contrast(background, ink) >= 4.5 for background, ink in shades)
    brightness = [contrast(background, "#000000") for background, _ in shades]
    assert brightness == sorted(brightness, reverse=not dark)
    assert (level(0.0), level(1.0)) == (0, len(shades) - 1)


def test_contrast_is_that_of_the_guideline() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def decoded(uri: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def cell_of(report: Report, dataset: str, norm: str) -> Cell:
    found = [cell for cell in report.cells if (cell.dataset, cell.norm) == (dataset, norm)]
    return next(cell for cell in found if cell.key in report.pictures)


@pytest.mark.parametrize(("dataset", "norm"), [("digits", "linf"), ("cifar10", "linf"), ("cifar10", "l2")])
def test_pictures_hold_the_pixels(report: Report, dataset: str, norm: str) -> None:
    cell = cell_of(report, dataset, norm)
    given = report.pictures[cell.key]
    shown = gallery(cell, given)
    moved = given.adversarial[:6] - given.clean[:6]
    reach = cell.epsilon if norm == "linf" else np.abs(moved).max()
    for number, triple in enumerate(shown.triples):
        clean = decoded(triple.clean)
        expected = np.round(given.clean[number] * 255)
        assert np.array_equal(clean, expected.transpose(1, 2, 0) if len(expected) == 3 else expected[0])
        grey = decoded(triple.perturbation) / 255
        plane = moved[number].transpose(1, 2, 0) if len(expected) == 3 else moved[number][0]
        np.testing.assert_allclose(grey, 0.5 + plane / (2 * reach), atol=0.5 / 255 + 1e-6)
    assert ("epsilon" in shown.scale) == (norm == "linf")


def test_photographs_are_thinned(report: Report) -> None:
    cell = cell_of(report, "cifar10", "linf")
    large = np.zeros((1, 3, 300, 200), np.float32)
    update = {"clean": large, "adversarial": large}
    triple = gallery(cell, report.pictures[cell.key].model_copy(update=update)).triples[0]
    assert decoded(triple.clean).shape == (100, 67, 3)


def test_fates_add_up(report: Report) -> None:
    from guard.report.html import _fates

    for row in report.worst_case:
        assert sum(share for _, _, share in _fates(row)) == pytest.approx(1)
    assert isinstance(report.worst_case[0], WorstCase)


def test_a_curve_is_drawn_once_to_scale(report: Report) -> None:
    """The line ends at the last bounded epsilon; each epsilon of the run is a circle at its own robust accuracy."""
    one = next(cell for cell in report.cells if cell.curve)
    other = one.model_copy(update={"epsilon": 1.5, "key": "other", "robust_accuracy": 0.25})
    only = report.model_copy(update={"cells": [one, other], "worst_case": []})
    (curve,) = curves(only)
    assert curve.points == "0,5 20,14.4 50,36 100,48.2 150,57.6 300,69.1"
    assert (curve.end, curve.unfound) == ("1.5", 0.04)
    assert [(mark.x, mark.y, mark.text) for mark in curve.marks] == [
        (100, round(72 * (1 - (one.robust_accuracy or 0)), 1), "epsilon 0.5: robust 18.4 %"),
        (300, 54, "epsilon 1.5: robust 25.0 %"),
    ]
    text = page(only)
    assert text.count("<polyline") == 1
    assert [tag for tag, _ in Reader(text).tags].count("circle") == 2
    assert "<td>0.26</td><td>4.0</td>" in text
    assert len(curves(report)) == 2  # of two models


def test_a_curve_of_nothing_found(report: Report) -> None:
    update = {"epsilon": float("inf"), "curve": ((0.0, 0.9), (float("inf"), 0.9)), "median_distance": float("inf")}
    (curve,) = curves(report.model_copy(update={"cells": [report.cells[0].model_copy(update=update)]}))
    assert (curve.points, curve.marks, curve.unfound) == ("0,7.2", (), 0.9)


def test_members_of_a_cascade_stand_on_the_page(report: Report) -> None:
    text = page(report)
    section = text[text.index('id="parts"') : text.index('id="warnings"')]
    rows = re.findall(r"<tr><th scope=.row.>(.*?)</th>(.*?)</tr>", section)
    assert [name for name, _ in rows] == ["apgd on jpeg, adaptive", "", "apgd on jpeg, oblivious", ""]
    assert [re.findall(r">([^<>]+)</td>", row) for _, row in rows[:2]] == [
        ["apgd-ce", "560", "500", "41.2", "40"],
        ["square|2", "60", "38", "1,204", "0"],
    ]
    bare = page(report.model_copy(update={"cells": report.cells[:2]}))
    assert 'id="parts"' not in bare
    assert 'id="distances"' not in bare
