import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from guard import InputError
from guard.report.training_events import Events
from guard.training.record import Epoch

MODULE = "torch.utils.tensorboard"


class FakeWriter:
    """Takes down what is written, in the order of the calls."""

    made: list["FakeWriter"] = []

    def __init__(self, log_dir: str, purge_step: int | None = None) -> None:
        Path(log_dir).mkdir(exist_ok=True)
        self.folder, self.purge_step = log_dir, purge_step
        self.calls: list[tuple[Any, ...]] = []
        self.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.calls.append((tag, value, step))

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.calls.append((tag, text, step))

    def flush(self) -> None:
        self.calls.append(("flush",))

    def close(self) -> None:
        self.calls.append(("close",))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeWriter]:
    module = ModuleType(MODULE)
    module.SummaryWriter = FakeWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setattr(FakeWriter, "made", [])
    return FakeWriter.made


def test_an_epoch_is_written_and_can_be_seen_at_once(made: list[FakeWriter], tmp_path: Path) -> None:
    first = Epoch(epoch=4, lr=0.1, loss=0.4, clean=0.9, fgsm=0.0, pgd=0.3, seconds=12, events=("one", "two"))
    second = Epoch(epoch=5, lr=0.2, loss=0.5, seconds=13)
    with Events(tmp_path, first=4) as events:
        events.add(first)
        assert made[0].calls[-1] == ("flush",)
        events.add(second)
        assert ("close",) not in made[0].calls
    [writer] = made
    assert (writer.folder, writer.purge_step) == (str(tmp_path), 4)
    assert writer.calls == [
        ("held-out/clean", 0.9, 4),
        ("held-out/fgsm", 0.0, 4),
        ("held-out/pgd", 0.3, 4),
        ("training/loss", 0.4, 4),
        ("training/lr", 0.1, 4),
        ("training/seconds", 12, 4),
        ("events", "one\n\ntwo", 4),
        ("flush",),
        ("training/loss", 0.5, 5),
        ("training/lr", 0.2, 5),
        ("training/seconds", 13, 5),
        ("flush",),
        ("close",),
    ]


def test_a_training_that_fails_still_ends_the_file(made: list[FakeWriter], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Events(tmp_path):
        raise RuntimeError
    assert made[0].calls == [("close",)]


def test_a_missing_package_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(InputError, match=r'Type: pip install "guard-robustness\[tensorboard\]"') as caught:
        Events(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(made: list[FakeWriter], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match=f"the folder '{file}' for TensorBoard cannot be written"):
        Events(file)
