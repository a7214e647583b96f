"""The page of a training: its words, its table, its config, and its epochs as CSV."""

import csv as reader
import html
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
import yaml

from guard.report.training import csv, page
from guard.training.record import Epoch, Record

MakeEpoch = Callable[..., Epoch]
MakeRecord = Callable[..., Record]
Records = dict[str, Record]


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


def test_accuracies_are_said_to_be_of_held_out_training_images(shown: Record) -> None:
    text = page(shown)
    if shown.held_out:
        assert "Accuracies are of 5,000 held-out training images, never of the test split." in text
    else:
        assert "No training image was held out, so no accuracy was measured." in text
        assert "%</th>" not in text


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


def test_the_title_names_model_defense_data_and_threat(epoch: MakeEpoch, record: MakeRecord, records: Records) -> None:
    assert "<h1>resnet18-cifar trained with trades + awp on cifar10, linf 8/255</h1>" in page(records["ten"])
    plain = record(epoch(1), label="none", config={"dataset": "digits", "threat": {"norm": "l2", "epsilon": "inf"}})
    assert "<h1>resnet18-cifar trained without a defense on digits, l2 inf</h1>" in page(plain)
    assert "<h1>resnet18-cifar trained with trades + awp</h1>" in page(records["nothing known"])


def test_the_kept_epoch_and_the_last_stand_at_the_top(records: Records) -> None:
    header = page(records["ten"]).split("</header>")[0]
    assert re.findall(r"<th scope=\"row\">(.*?)</th>", header) == ["epoch 7, kept", "epoch 10, the last"]
    seventh, tenth = 1 - 1 / 8, 1 - 1 / 11
    expected = [f"{100 * share * part:.1f}" for share in (seventh, tenth) for part in (1, 0.8, 0.7)]
    assert re.findall(r"<td>(.*?)</td>", header) == expected
    alone = page(records["one"]).split("</header>")[0]
    assert re.findall(r"<th scope=\"row\">(.*?)</th>", alone) == ["epoch 1, kept"]


@pytest.mark.parametrize(
    ("done", "finished", "words"),
    [
        (3, True, "3 of 3 epochs; 45,000 images learned on, 37 s"),
        (2, True, "2 of 3 epochs, ended early; 45,000 images learned on, 25 s"),
        (2, False, "2 of 3 epochs, not finished; 45,000 images learned on, 25 s"),
    ],
)
def test_how_far_it_came(done: int, finished: bool, words: str, epoch: MakeEpoch, record: MakeRecord) -> None:
    epochs = map(epoch, range(1, done + 1))
    assert f"{words}." in page(record(*epochs, finished=finished, config={"training": {"epochs": 3}}))


def test_the_config_stands_there_as_yaml(shown: Record) -> None:
    found = re.search("<pre>(.*?)</pre>", page(shown), re.DOTALL)
    assert found
    assert yaml.safe_load(html.unescape(found[1])) == shown.config
    assert all(str(html.unescape(name)) in html.unescape(page(shown)) for name in shown.versions.values())


def test_the_csv_reads_back_as_the_epochs(shown: Record) -> None:
    header, *rows = reader.reader(io.StringIO(csv(shown), newline=""))
    assert header == ["epoch", "lr", "loss", "clean", "fgsm", "pgd", "seconds"]
    for epoch, row in zip(shown.epochs, rows, strict=True):
        assert [float(value) if value else None for value in row] == [getattr(epoch, name) for name in header]
