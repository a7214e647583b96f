import csv as reader
import html
import io
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
import yaml

from guard.report.charts import ticks
from guard.report.training import csv, page
from guard.report.training_curves import pictures
from guard.training.record import Epoch, Record

EVIL = "<script>alert(1)</script>\"'&"
WIDTH, HEIGHT = 1000, 250


def epoch(number: int, **changes: Any) -> Epoch:
    share = 1 - 1 / (number + 1)
    return Epoch(
        **{"epoch": number, "lr": 0.1 / number, "loss": 2 / number, "seconds": 12.4}
        | {"clean": share, "fgsm": 0.8 * share, "pgd": 0.7 * share}
        | changes
    )


def record(*epochs: Epoch, **changes: Any) -> Record:
    config = {
        "dataset": {"name": "cifar10", "split": "train"},
        "threat": [{"norm": "linf", "epsilon": 8 / 255}],
        "training": {"epochs": len(epochs)},
    }
    given = {
        "config": config,
        "label": "trades + awp",
        "model": "resnet18-cifar",
        "num_classes": 10,
        "image_shape": (3, 32, 32),
        "images": 45_000,
        "held_out": 5_000,
        "data": "3f9a1c",
        "versions": {"guard-robustness": "0.1.0", "torch": "2.9"},
        "epochs": epochs,
        "kept": len(epochs) or None,
        "finished": True,
    }
    return Record(**given | changes)


NOTHING = {"clean": None, "fgsm": None, "pgd": None}
RECORDS = {
    "one": record(epoch(1)),
    "ten": record(*map(epoch, range(1, 11)), kept=7),
    "many": record(*map(epoch, range(1, 201)), kept=140),
    "nothing held out": record(*(epoch(number, **NOTHING) for number in range(1, 6)), held_out=0),
    "no bound": record(*(epoch(number, fgsm=None) for number in range(1, 6))),
    "alarm": record(epoch(1), epoch(2, events=("PGD fell", "a step back")), epoch(3, events=(EVIL,)), kept=1),
    "not finished": record(epoch(1), epoch(2), finished=False, config={"training": {"epochs": 8}}),
    "not begun": record(finished=False),
    "nothing known": record(epoch(1, loss=float("inf"), lr=0), config={}, kept=None),
    "evil": record(
        epoch(1, events=(EVIL,)),
        config={EVIL: EVIL, "dataset": EVIL, "threat": EVIL},
        label=EVIL,
        model=EVIL,
        data=EVIL,
        versions={EVIL: EVIL},
    ),
}
every = pytest.mark.parametrize("shown", RECORDS.values(), ids=RECORDS)


class Reader(HTMLParser):
    """Tags with their attributes, the rows of the table of epochs, and that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self._epochs = False
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)
        if tag == "table":
            self._epochs = dict(attrs).get("class") == "list epochs"
        if self._epochs and tag == "tr":
            self.rows.append([])
        if self._epochs and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._epochs and {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


@every
def test_the_page_is_whole_escapes_names_and_refers_to_nothing_outside(shown: Record) -> None:
    text = page(shown)
    tags = Reader(text).tags
    assert not re.search(r"https?:|url\(|@import", text)
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "img"}
    links = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert links == {f"#{attributes['id']}" for _, attributes in tags if attributes.get("id")}
    assert "nan" not in text.lower()
    allowed = {"lang", "charset", "name", "content", "class", "id", "href", "scope", "open", "style", "role"}
    allowed |= {"aria-label", "viewbox", "d", "x", "y", "dy", "cx", "cy", "r", "width", "height"}
    assert {name for _, attributes in tags for name in attributes} <= allowed


@every
def test_accuracies_are_said_to_be_of_held_out_training_images(shown: Record) -> None:
    text = page(shown)
    if shown.held_out:
        assert "Accuracies are of 5,000 held-out training images, never of the test split." in text
    else:
        assert "No training image was held out, so no accuracy was measured." in text
        assert "%</th>" not in text


@every
def test_the_table_shows_every_epoch(shown: Record) -> None:
    rows = Reader(page(shown)).rows
    if not shown.epochs:
        assert rows == []
        return
    fields = [name for name in ("clean", "fgsm", "pgd") if any(getattr(epoch, name) for epoch in shown.epochs)]
    assert len(rows[0]) == len(fields) + 5
    for epoch, row in zip(shown.epochs, rows[1:], strict=True):
        assert row[0] == str(epoch.epoch)
        assert row[1 : len(fields) + 1] == [f"{100 * getattr(epoch, name):.1f}" for name in fields]
        assert row[-4:-2] == [f"{epoch.loss:.3f}", f"{epoch.lr:.3g}"]
        assert ("kept" in row[-1]) == (epoch.epoch == shown.kept)
        assert ("alarm" in row[-1]) == bool(epoch.events)


def test_the_title_names_model_defense_data_and_threat() -> None:
    assert "<h1>resnet18-cifar trained with trades + awp on cifar10, linf 8/255</h1>" in page(RECORDS["ten"])
    plain = record(epoch(1), label="none", config={"dataset": "digits", "threat": {"norm": "l2", "epsilon": "inf"}})
    assert "<h1>resnet18-cifar trained without a defense on digits, l2 inf</h1>" in page(plain)
    assert "<h1>resnet18-cifar trained with trades + awp</h1>" in page(RECORDS["nothing known"])


def test_the_kept_epoch_and_the_last_stand_at_the_top() -> None:
    header = page(RECORDS["ten"]).split("</header>")[0]
    assert re.findall(r"<th scope=\"row\">(.*?)</th>", header) == ["epoch 7, kept", "epoch 10, the last"]
    seventh, tenth = 1 - 1 / 8, 1 - 1 / 11
    expected = [f"{100 * share * part:.1f}" for share in (seventh, tenth) for part in (1, 0.8, 0.7)]
    assert re.findall(r"<td>(.*?)</td>", header) == expected
    alone = page(RECORDS["one"]).split("</header>")[0]
    assert re.findall(r"<th scope=\"row\">(.*?)</th>", alone) == ["epoch 1, kept"]


@pytest.mark.parametrize(
    ("done", "finished", "words"),
    [
        (3, True, "3 of 3 epochs; 45,000 images learned on, 37 s"),
        (2, True, "2 of 3 epochs, ended early; 45,000 images learned on, 25 s"),
        (2, False, "2 of 3 epochs, not finished; 45,000 images learned on, 25 s"),
    ],
)
def test_how_far_it_came(done: int, finished: bool, words: str) -> None:
    epochs = map(epoch, range(1, done + 1))
    assert f"{words}." in page(record(*epochs, finished=finished, config={"training": {"epochs": 3}}))


def path(shown: Record, kind: str) -> str:
    found = [line.path for picture in pictures(shown) for line in picture.lines if line.kind == kind]
    assert len(found) == 1
    assert f'd="{found[0]}"' in page(shown)
    return found[0]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) ([^ML]+)", path)]


@pytest.mark.parametrize("name", ["one", "ten", "many"])
def test_accuracies_are_drawn_from_0_to_100_percent_in_the_middle_of_their_epochs(name: str) -> None:
    shown, epochs = RECORDS[name], len(RECORDS[name].epochs)
    for kind in ("clean", "fgsm", "pgd"):
        found = points(path(shown, kind))
        for epoch, (x, y) in zip(shown.epochs, found, strict=True):
            assert x == pytest.approx((epoch.epoch - 0.5) / epochs * WIDTH, abs=0.051)
            assert y == pytest.approx((1 - getattr(epoch, kind)) * HEIGHT, abs=0.051)


def test_loss_and_learning_rate_have_axes_of_their_own_that_start_at_0() -> None:
    _, loss, rate = pictures(RECORDS["ten"])
    for picture, kind, top in ((loss, "loss", 2), (rate, "lr", 0.1)):
        marks = {float(tick.text): tick.at for tick in picture.rows}
        assert (marks[0], marks[top]) == (picture.height, 0)
        for epoch, (_, y) in zip(RECORDS["ten"].epochs, points(picture.lines[0].path), strict=True):
            assert y == pytest.approx((1 - getattr(epoch, kind) / top) * picture.height, abs=0.051)


def test_a_line_breaks_where_nothing_was_measured() -> None:
    gaps = {2, 4}
    shown = record(*(epoch(n, pgd=None) if n in gaps else epoch(n) for n in range(1, 101)))
    assert [letter for letter in path(shown, "pgd") if letter.isalpha()][:4] == ["M", "M", "M", "L"]
    line = pictures(shown)[0].lines[2]
    assert line.dots == tuple(points(line.path)[:2])  # the rest is joined by the line
    assert pictures(shown)[0].lines[0].dots == ()


def test_each_of_few_epochs_has_a_dot() -> None:
    for line in (line for picture in pictures(RECORDS["ten"]) for line in picture.lines):
        assert line.dots == tuple(points(line.path))
        assert line.kept == line.dots[6]


def test_what_is_not_finite_is_left_out_of_the_picture() -> None:
    loss = pictures(record(epoch(1), epoch(2, loss=float("inf")), epoch(3)))[1]
    assert len(points(loss.lines[0].path)) == 2
    assert max(float(tick.text) for tick in loss.rows) == 2


def test_a_training_that_goes_on_leaves_room_for_what_is_to_come() -> None:
    config = {"training": {"epochs": 8}}
    for finished, width in ((False, WIDTH / 8), (True, WIDTH / 2)):
        first = pictures(record(epoch(1), epoch(2), finished=finished, config=config))[0]
        assert [band.middle for band in first.bands] == pytest.approx([0.5 * width, 1.5 * width], abs=0.051)
        assert first.columns[-1].text == ("2" if finished else "8")


def test_kept_epoch_and_alarms_are_marked_in_every_picture_and_listed() -> None:
    shown, text = RECORDS["alarm"], page(RECORDS["alarm"])
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
    quiet = page(RECORDS["ten"])
    assert not re.search('class="(event|flag)"|id="alarms"|href="#alarms"', quiet)


def test_the_pointer_on_an_epoch_tells_its_figures() -> None:
    titles = re.findall(r"<title>(.*?)</title></rect>", page(RECORDS["alarm"]), re.DOTALL)
    assert len(titles) == 9
    assert titles[1] == (
        "epoch 2: clean 66.7, FGSM 53.3, PGD 46.7, loss 1.000, learning rate 0.05, 12 s\nPGD fell\na step back"
    )


def test_the_words_above_the_kept_epoch_stay_in_the_picture() -> None:
    for kept, anchor in ((1, "start"), (50, "middle"), (100, "end")):
        assert pictures(record(*map(epoch, range(1, 101)), kept=kept))[0].anchor == anchor


@pytest.mark.parametrize(
    ("epochs", "named"), [(1, "1"), (12, "1 2 3 4 5 6 7 8 9 10 11 12"), (30, "1 5 10 15 20 25 30")]
)
def test_the_axis_names_few_epochs(epochs: int, named: str) -> None:
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


@every
def test_the_config_stands_there_as_yaml(shown: Record) -> None:
    found = re.search("<pre>(.*?)</pre>", page(shown), re.DOTALL)
    assert found
    assert yaml.safe_load(html.unescape(found[1])) == shown.config
    assert all(str(html.unescape(name)) in html.unescape(page(shown)) for name in shown.versions.values())


@every
def test_the_csv_reads_back_as_the_epochs(shown: Record) -> None:
    header, *rows = reader.reader(io.StringIO(csv(shown), newline=""))
    assert header == ["epoch", "lr", "loss", "clean", "fgsm", "pgd", "seconds"]
    for epoch, row in zip(shown.epochs, rows, strict=True):
        assert [float(value) if value else None for value in row] == [getattr(epoch, name) for name in header]
