"""What attacks learned: once each, on every face of a report, with what it was learned on."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from rich.console import Console

import guard
from guard import Report
from guard.evaluation.result import Candidate, Fit
from guard.report.html import fragment, page
from guard.report.learned import learned
from guard.report.learned_words import lessons
from guard.report.markdown import document
from guard.report.terminal import show
from guard.training.record import Epoch

EVIL = "<script>alert(1)</script>\"'&"
LINE = "uap learned against small-cnn on 54,000 training images of digits, 3 epochs, 12 min 5 s, 60,000 queries."


def epoch(number: int, **figures: float) -> Epoch:
    return Epoch(epoch=number, lr=0.1, loss=2.5 / number, figures=figures, seconds=241.7)


def fit(**changes: Any) -> Fit:
    given = {
        "attack": {"name": "uap"},
        "model": "small-cnn",
        "dataset": "digits",
        "images": 54_000,
        "held_out": 1_000,
        "shared": 0,
        "goal": "untargeted",
        "norm": "linf",
        "epsilon": 0.2,
        "seed": 0,
        "forwards": 60_000,
        "backwards": 48_321,
        "seconds": 725.1,
        "epochs": (epoch(1, fooled=0.25), epoch(2, fooled=0.625), epoch(3, fooled=0.5)),
        "kept": 2,
    }
    return Fit(**given | changes)


def taught(report: Report, one: Fit | None = None, **changes: Any) -> Report:
    """The first cell of two defenses, pgd's, attack with what was learned; all others with nothing."""
    one = one or fit()
    cells = [
        cell.model_copy(update={"fit": one, "label": "uap"} | changes)
        for cell in report.cells
        if (cell.dataset, cell.label, cell.knowledge) == ("digits", "pgd", "adaptive")
        and cell.defense in ("none", "jpeg")
    ]
    assert len(cells) == 2
    others = [cell for cell in report.cells if cell.label == "fgsm" and cell.knowledge == "adaptive"]
    return report.model_copy(update={"cells": [*cells, *others], "worst_case": []})


def terminal(report: Report) -> str:
    console = Console(file=io.StringIO(), width=400)
    show(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def section(report: Report) -> str:
    text = page(report)
    return text[text.index('<section id="learned">') : text.index('<section id="cost">')]


FACES = {"terminal": terminal, "markdown": document, "page": page, "fragment": fragment}
every = pytest.mark.parametrize("face", FACES.values(), ids=FACES)


@every
def test_each_fit_is_said_once_under_its_table(report: Report, face: Any) -> None:
    assert len(re.findall(rf"(?:^|^- |<li>){re.escape(LINE)}", face(taught(report)), re.MULTILINE)) == 1
    assert "learned against" not in face(report)


@every
def test_what_one_must_know_to_trust_a_figure_is_said(report: Report, face: Any) -> None:
    three = face(taught(report, fit(shared=3)))
    assert "60,000 queries; 3 evaluated images are among those that it learned on." in three
    assert "queries; 1 evaluated image is among those" in face(taught(report, fit(shared=1)))
    other = face(taught(report, fit(epsilon=8 / 255, seed=4)))
    assert "60,000 queries; it learned for untargeted, linf 8/255, seed 4." in other
    assert "it learned for next, linf 0.2, seed 0" in face(taught(report, fit(goal="next")))
    for quiet in (fit(), fit(epsilon=None)):
        assert not re.search("among those that|it learned for", face(taught(report, quiet)))


def test_one_of_each_is_singular(report: Report) -> None:
    one = taught(report, fit(images=1, forwards=1, epochs=(epoch(1, fooled=0.5),), kept=1, seconds=0.5))
    assert "on 1 training image of digits, 1 epoch, 0.5 s, 1 query." in terminal(one)


def test_the_table_has_a_row_for_each_different_fit(report: Report) -> None:
    shown = taught(report)
    twin = [cell.model_copy(update={"label": "uap#2"}) for cell in shown.cells[:1]]
    other = [cell.model_copy(update={"fit": fit(model="small-cnn + jpeg", forwards=7)}) for cell in shown.cells[1:2]]
    shown = shown.model_copy(update={"cells": [*shown.cells[:1], *twin, *other, *shown.cells[2:]]})
    text = section(shown)
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    rows = [re.findall(r">([^<>\n]+)<", row) for row in body.split("</tr>")[:-1]]
    learned_on = ["54,000 images of the training split of digits", "1,000 more held out, to choose the epoch by"]
    aim, took = "untargeted, linf 0.2, seed 0", ["48,321", "12 min 5 s", "fooled ", "0.625"]
    assert rows == [
        ["uap and uap#2", "against small-cnn", aim, *learned_on, "3", "kept:&nbsp;2", "60,000", *took],
        ["uap", "against small-cnn + jpeg", aim, *learned_on, "3", "kept:&nbsp;2", "7", *took],
    ]
    assert text.count("<details open>") == 2


def test_what_is_unusual_stands_in_the_row(report: Report) -> None:
    rare = fit(held_out=0, shared=2, epsilon=None)
    text = section(taught(report, rare, attack_parameters={"weights": "RUN/attacks/uap.safetensors"}))
    for words in ("none held out", "untargeted, linf without a bound, seed 0", "read from RUN/attacks/uap.safetensors"):
        assert words in text
    assert "<strong>2 evaluated images are among those that it learned on</strong>" in text
    assert "read from" not in section(taught(report))


def test_figures_are_those_of_the_weights_that_attack(report: Report) -> None:
    """Of the kept epoch; what that lacks, of the last one before it; never of a later one."""
    epochs = (epoch(1, a=0.1, b=3.0), epoch(2, a=0.2, b=3.25), epoch(3, a=0.3), epoch(4, a=0.4, b=9.0, c=1.0))
    (found,) = learned(taught(report, fit(epochs=epochs, kept=3)))
    assert [tuple(figure) for figure in found.figures] == [("a", 0.3, 3), ("b", 3.25, 2)]
    text = section(taught(report, fit(epochs=epochs, kept=3)))
    assert "<div>a <strong>0.3</strong></div>" in text
    assert '<div>b <strong>3.25</strong> <span class="small">(epoch&nbsp;2)</span></div>' in text


def test_the_course_of_each_figure_is_drawn_to_scale(report: Report) -> None:
    epochs = (epoch(1, a=0.25), epoch(2, a=0.5, b=-4.0), epoch(3, b=4.0), epoch(4, a=1.0, b=float("nan")))
    shown = taught(report, fit(epochs=epochs, kept=2))
    a, b = learned(shown)[0].charts
    assert (a.caption, b.caption) == ("a", "b")
    middle = [448 * (number - 0.5) / 4 for number in (1, 2, 3, 4)]
    assert a.lines[0].dots == ((middle[0], 130 * 0.75), (middle[1], 65), (middle[3], 0))
    assert a.lines[0].path == "M56 97.5L168 65M392 0"  # broken where there is none
    assert b.lines[0].dots == ((middle[1], 130), (middle[2], 0))  # from -4 to 4
    assert (a.lines[0].kept, b.lines[0].kept) == ((middle[1], 65), (middle[1], 130))
    text = section(shown)
    assert all(f'd="{line.path}"' in text for chart in (a, b) for line in chart.lines)
    assert text.count("kept: epoch 2</text>") == 2
    assert "<title>epoch 2: a 0.5, b -4, loss 1.25, 4 min 2 s</title>" in text


def test_a_single_epoch_has_no_course(report: Report) -> None:
    assert "<svg" not in section(taught(report, fit(epochs=(epoch(1, fooled=0.5),), kept=1)))


def decoded(text: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    (uri,) = re.findall(r'<figure class="universal"><img[^>]* src="data:image/png;base64,([^"]+)">', text)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [0.0, 0.05, 3.0])
def test_a_perturbation_for_all_images_is_shown_once_around_grey(report: Report, channels: int, size: float) -> None:
    """White and black are its largest change either way, whatever that is."""
    shown = taught(report)
    values = np.linspace(-0.4, 1, channels * 12, dtype=np.float32).reshape(channels, 3, 4) * np.float32(size)
    pictures = {key: found.model_copy(update={"learned": values}) for key, found in report.pictures.items()}
    text = section(shown.model_copy(update={"pictures": pictures}))
    expected = np.round(255 * (0.5 + values / (2 * (size or 1))))
    pixels = decoded(text)
    assert np.array_equal(pixels, expected.transpose(1, 2, 0) if channels == 3 else expected[0])
    assert (pixels.max(), pixels.min()) == ((128, 128) if size == 0 else (255, np.round(255 * 0.3)))
    assert f"grey is no change, white +{size or 1:g}, black &minus;{size or 1:g}</figcaption>" in text
    assert '<figure class="universal">' not in section(shown)


def test_a_large_perturbation_is_thinned(report: Report) -> None:
    values = np.zeros((3, 700, 300), np.float32)
    pictures = {key: found.model_copy(update={"learned": values}) for key, found in report.pictures.items()}
    assert decoded(section(taught(report).model_copy(update={"pictures": pictures}))).shape == (234, 100, 3)


def test_a_report_read_back_shows_the_same_but_for_pictures(report: Report, tmp_path: Path) -> None:
    shown = taught(report)
    shown.save(tmp_path)
    read = guard.load_run(tmp_path)
    assert section(read) == section(shown)
    assert LINE in terminal(read)


def test_names_are_escaped(report: Report) -> None:
    bad = fit(model=EVIL, dataset=EVIL, goal=EVIL, epochs=(epoch(1, **{EVIL: 0.5}), epoch(2, **{EVIL: 0.5})))
    text = section(taught(report, bad, label=EVIL, attack_parameters={"weights": EVIL}))
    assert "<script" not in text
    assert text.count(str(escape(EVIL))) >= 8


def test_nothing_is_said_where_nothing_was_learned(report: Report) -> None:
    text = page(report)
    assert not re.search('id="learned"|href="#learned"|An attack that learns|class="chart"|universal', text)
    shown = page(taught(report))
    assert all(words in shown for words in ('href="#learned"', "An attack that learns", ".universal"))


WAYS = ("gradient", "bpda", "relax", "queries", "learned", "oblivious", "transfer")  # that a cell can have


@pytest.mark.parametrize("names", [WAYS, ("learned", "oblivious"), ("gradient",)])
def test_candidates_of_every_name_are_explained_where_they_were_tried(report: Report, names: tuple[str, ...]) -> None:
    spent = {"images": 597, "robust_accuracy": 0.5, "forwards_per_image": 0, "backwards_per_image": 0, "seconds": 1}
    tried = tuple(Candidate(name=name, **spent) for name in names)
    cells = [cell.model_copy(update={"candidates": tried}) for cell in report.cells[:2]]
    text = page(report.model_copy(update={"cells": cells}))
    text = text[text.index('<section id="candidates">') : text.index('<section id="config">')]
    assert tuple(re.findall(r"<li><strong>(.*?)</strong>: \w+", text)) == names
    if "learned" in names:
        assert "learned on training images; it asks nothing about the images it attacks" in text


def test_the_like_of_many_networks_is_one_line(report: Report) -> None:
    (first, *_) = taught(report).cells

    def told(count: int) -> list[str]:
        fits = [fit(model=f"net-{number}", seconds=60.0 + number) for number in range(count)]
        return lessons(first.model_copy(update={"fit": each, "label": "uap"}) for each in [*fits, fit(images=7)])

    assert len(told(4)) == 5
    assert told(5)[0] == (
        "uap learned against each of 5 networks on 54,000 training images of digits, 3 epochs, 1 min 0 s to 1 min 4 s, "
        "60,000 queries."
    )
    assert len(told(5)) == 2
