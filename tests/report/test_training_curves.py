"""The pictures of a training: where its curves, its axes and its marks are drawn."""

import html
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from guard.report.charts import ticks
from guard.report.training import page
from guard.report.training_curves import pictures
from guard.training.record import Epoch, Record

EVIL = "<script>alert(1)</script>\"'&"
WIDTH, HEIGHT = 1000, 250
MakeEpoch = Callable[..., Epoch]
MakeRecord = Callable[..., Record]
Records = dict[str, Record]


def path(shown: Record, kind: str) -> str:
    found = [line.path for picture in pictures(shown) for line in picture.lines if line.kind == kind]
    assert len(found) == 1
    assert f'd="{found[0]}"' in page(shown)
    return found[0]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) ([^ML]+)", path)]


@pytest.mark.parametrize("name", ["one", "ten", "many"])
def test_accuracies_are_drawn_from_0_to_100_percent_in_the_middle_of_their_epochs(name: str, records: Records) -> None:
    shown, epochs = records[name], len(records[name].epochs)
    for kind in ("clean", "fgsm", "pgd"):
        found = points(path(shown, kind))
        for epoch, (x, y) in zip(shown.epochs, found, strict=True):
            assert x == pytest.approx((epoch.epoch - 0.5) / epochs * WIDTH, abs=0.051)
            assert y == pytest.approx((1 - getattr(epoch, kind)) * HEIGHT, abs=0.051)


def test_loss_and_learning_rate_have_axes_of_their_own_that_start_at_0(records: Records) -> None:
    _, loss, rate = pictures(records["ten"])
    for picture, kind, top in ((loss, "loss", 2), (rate, "lr", 0.1)):
        marks = {float(tick.text): tick.at for tick in picture.rows}
        assert (marks[0], marks[top]) == (picture.height, 0)
        for epoch, (_, y) in zip(records["ten"].epochs, points(picture.lines[0].path), strict=True):
            assert y == pytest.approx((1 - getattr(epoch, kind) / top) * picture.height, abs=0.051)


def test_a_line_breaks_where_nothing_was_measured(epoch: MakeEpoch, record: MakeRecord) -> None:
    gaps = {2, 4}
    shown = record(*(epoch(n, pgd=None) if n in gaps else epoch(n) for n in range(1, 101)))
    assert [letter for letter in path(shown, "pgd") if letter.isalpha()][:4] == ["M", "M", "M", "L"]
    line = pictures(shown)[0].lines[2]
    assert line.dots == tuple(points(line.path)[:2])  # the rest is joined by the line
    assert pictures(shown)[0].lines[0].dots == ()


def test_each_of_few_epochs_has_a_dot(records: Records) -> None:
    for line in (line for picture in pictures(records["ten"]) for line in picture.lines):
        assert line.dots == tuple(points(line.path))
        assert line.kept == line.dots[6]


def test_what_is_not_finite_is_left_out_of_the_picture(epoch: MakeEpoch, record: MakeRecord) -> None:
    loss = pictures(record(epoch(1), epoch(2, loss=float("inf")), epoch(3)))[1]
    assert len(points(loss.lines[0].path)) == 2
    assert max(float(tick.text) for tick in loss.rows) == 2


def test_a_training_that_goes_on_leaves_room_for_what_is_to_come(epoch: MakeEpoch, record: MakeRecord) -> None:
    config = {"training": {"epochs": 8}}
    for finished, width in ((False, WIDTH / 8), (True, WIDTH / 2)):
        first = pictures(record(epoch(1), epoch(2), finished=finished, config=config))[0]
        assert [band.middle for band in first.bands] == pytest.approx([0.5 * width, 1.5 * width], abs=0.051)
        assert first.columns[-1].text == ("2" if finished else "8")


def test_kept_epoch_and_alarms_are_marked_in_every_picture_and_listed(records: Records) -> None:
    shown, text = records["alarm"], page(records["alarm"])
    drawn = text.split("<svg viewBox")[1:]
    assert len(drawn) == 3
    for picture, svg in zip(pictures(shown), drawn, strict=True):
        marks = [
            {float(x) for x in re.findall(rf'class="{kind}" d="M(\S+) ', svg)} for kind in ("kept", "event", "flag")
        ]
        thirds = [round((number - 0.5) / 3 * picture.width, 1) for number in (1, 2, 3)]
        assert marks == [{thirds[0]}, set(thirds[1:]), set(thirds[1:])]
        assert "kept: epoch 1</text>" in svg
    section = text[text.index('id="alarms"') : text.index('id="epochs"')]
    assert [html.unescape(event) for event in re.findall(r"<div>(.*?)</div>", section)] == [
        "PGD fell",
        "a step back",
        EVIL,
    ]
    quiet = page(records["ten"])
    assert not re.search('class="(event|flag)"|id="alarms"|href="#alarms"', quiet)


def test_the_pointer_on_an_epoch_tells_its_figures(records: Records) -> None:
    titles = re.findall(r"<title>(.*?)</title></rect>", page(records["alarm"]), re.DOTALL)
    assert len(titles) == 9
    assert titles[1] == (
        "epoch 2: clean 66.7, FGSM 53.3, PGD 46.7, loss 1.000, learning rate 0.05, 12 s\nPGD fell\na step back"
    )


def test_the_words_above_the_kept_epoch_stay_in_the_picture(epoch: MakeEpoch, record: MakeRecord) -> None:
    for kept, anchor in ((1, "start"), (50, "middle"), (100, "end")):
        assert pictures(record(*map(epoch, range(1, 101)), kept=kept))[0].anchor == anchor


@pytest.mark.parametrize(
    ("epochs", "named"), [(1, "1"), (12, "1 2 3 4 5 6 7 8 9 10 11 12"), (30, "1 5 10 15 20 25 30")]
)
def test_the_axis_names_few_epochs(epochs: int, named: str, epoch: MakeEpoch, record: MakeRecord) -> None:
    first = pictures(record(*map(epoch, range(1, epochs + 1))))[0]
    assert " ".join(tick.text for tick in first.columns) == named


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 2.31), (0, 0.1), (0, 7e-6), (-3, 40), (0, 98765)])
def test_ticks_are_round_few_and_reach_around(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    steps = [after - before for before, after in pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert f"{steps[0]:e}"[0] in "125"
    assert float(f"{steps[0]:e}".split("e")[0]) in (1, 2, 5)
    assert found[0] <= low < found[0] + steps[0]
    assert found[-1] - steps[0] < high <= found[-1]
    assert 2 < len(found) <= 8
