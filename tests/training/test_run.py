"""A training's folder: it is the network that was trained, whatever became of the code since, and one process's."""

import logging
import multiprocessing
from pathlib import Path

import pytest
import torch

import guard
from guard import InputError
from guard.api import perform_training
from guard.config import EvaluationConfig
from guard.configfile import read
from guard.report.training_words import where
from guard.training.checkpoint import Checkpoints
from guard.training.lock import alone
from guard.training.record import Record
from guard.training.run import RECORD, read_record
from guard.trainingconfig import TrainingConfig

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.{activation}(), nn.Linear(16, 10))
"""
CONFIG = """
dataset: digits
model: {name: net.py:make, weights: none}
threat: {norm: linf, epsilon: 0.1}
training: {epochs: 2, batch_size: 200, lr: 0.1}
"""
DARKER = """
from guard import Defense, hookimpl

class Darker(Defense):
    "Trains on darker images."
    name = "darker"

    def augment(self, images, targets, generator):
        return images * {share}, targets

@hookimpl
def guard_defenses():
    return [Darker]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("ReLU")
    Path("own.yaml").write_text(CONFIG)
    return tmp_path


def write(activation: str) -> None:
    Path("net.py").write_text(NET.format(activation=activation))


def trained(**settings: object) -> Record:
    overrides = [f"{key}={value}" for key, value in settings.items()]
    config, _ = read(TrainingConfig, "own.yaml", overrides)
    return perform_training(config, Path("run"))


def test_the_folder_is_the_network_that_was_trained_though_its_file_was_edited_or_is_elsewhere(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained()
    images = guard.Registry.load().create("dataset", "digits").load("test").floats()[:50]
    answers = guard.load("run")(images)
    write("Tanh")
    torch.testing.assert_close(guard.load("run")(images), answers, rtol=0, atol=0)
    (place / "net.py").unlink()
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    torch.testing.assert_close(guard.load("../run")(images), answers, rtol=0, atol=0)


def test_a_training_does_not_go_on_with_edited_code(place: Path) -> None:
    trained()
    write("Sigmoid")
    with pytest.raises(InputError, match="from before the code of its model or defense was edited"):
        trained()
    write("ReLU")
    assert trained().finished


def test_nor_with_an_edited_plugin(place: Path) -> None:
    Path("mine.py").write_text(DARKER.format(share=0.5))
    Path("own.yaml").write_text(CONFIG + "plugins: [./mine.py]\ndefense: darker\n")
    trained()
    Path("mine.py").write_text(DARKER.format(share=0.9))
    with pytest.raises(InputError, match="from before the code"):
        trained()


def test_what_is_not_finished_is_loaded_with_a_word(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = trained()
    with caplog.at_level(logging.WARNING):
        guard.load("run")
        assert not caplog.messages
        Path("run", RECORD).write_text(record.model_copy(update={"finished": False}).model_dump_json())
        guard.load("run")
    assert caplog.messages == [f"the training in 'run' is not finished: these are weights of epoch {record.kept}"]


def test_one_process_at_a_time(place: Path) -> None:
    (place / "run").mkdir()
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_occupy, args=(place / "run", ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(InputError, match="another process is training in 'run'"):
            trained()
        assert not Path("run", RECORD).exists()
    finally:
        done.set()
        other.join()
    assert trained().finished


def _occupy(folder: Path, ready, done) -> None:  # type: ignore[no-untyped-def]
    with alone(folder):
        ready.set()
        done.wait(60)


def test_a_checkpoint_with_a_flipped_bit_is_damaged(tmp_path: Path) -> None:
    checkpoints, said = Checkpoints(tmp_path), list[str]()
    checkpoints.save({"a": torch.arange(6.0), "b": torch.ones(2)}, "first")
    checkpoints.save({"a": torch.arange(6.0), "b": torch.ones(2)}, "second")
    file = tmp_path / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = checkpoints.load(said.append)
    assert found is not None
    assert found[1] == "first"
    assert "its content changed" in said[0]


def test_a_network_that_learned_behind_a_preprocess_says_so(place: Path) -> None:
    record = trained(defense="[gaussian-augmentation, gaussian-blur]")
    assert record.behind == ("gaussian-blur",)
    assert "behind gaussian-blur" in where(record)
    assert "defenses: [[gaussian-blur]]" in where(record)
    assert "behind" not in where(record.model_copy(update={"behind": ()}))


def test_a_config_of_the_other_command_is_told_so(place: Path) -> None:
    Path("own.yaml").write_text(CONFIG + "attacks: [pgd]\n")
    with pytest.raises(InputError, match=r"'own.yaml' has 'attacks', as configs of `guard evaluate` do"):
        read(TrainingConfig, "own.yaml")
    Path("own.yaml").write_text(CONFIG + "defense: trades\n")
    with pytest.raises(InputError, match=r"as configs of `guard train` do. Run guard train own.yaml"):
        read(EvaluationConfig, "own.yaml")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"training.lr": ".inf"}, "finite"),
        ({"training.milestones": "[0.5]"}, "milestones are of schedule multi-step, and the schedule is cyclic"),
        ({"model": "runs/nowhere"}, "'runs/nowhere' is no folder of a training"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, str], reason: str, place: Path) -> None:
    with pytest.raises(InputError, match=reason):
        trained(**settings)
    assert read_record(place / "run") is None
