"""A training that is killed goes on as if it had not been; a damaged checkpoint is passed over."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from guard import Data, Defense, InputError, Registry, Stack, Step, ThreatModel
from guard.defense import stack
from guard.progress import Progress
from guard.recipe import Training
from guard.training.checkpoint import Checkpoints
from guard.training.course import Course
from guard.training.fabric import fabric
from guard.training.loop import train

CPU = torch.device("cpu")
DEFENSES = [
    [],
    ["adversarial-training"],
    [{"name": "free", "replays": 2}],
    ["awp", {"name": "adversarial-training", "attack": {"name": "pgd", "steps": 2}}],
    ["trades", "gaussian-augmentation"],
]


class Killed(BaseException):
    """As if the process were gone."""


class Kill(Defense):
    """Kills the training at an update."""

    name = "kill"

    at: int
    """Which one, from 1; never where 0."""

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        counted.append(1)
        if len(counted) == self.at:
            raise Killed
        return proceed()


counted: list[int] = []
NEVER = Stack(members=(Kill(at=0),))


class Told(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def data() -> Data:
    generator = Generator().manual_seed(2)
    images = torch.randint(0, 256, (26, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Data.of(images, torch.randint(0, 3, (26,), generator=generator))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def fit(model: nn.Module, data: Data, defense: Stack, folder: Path | None, told: Progress, **settings: Any) -> Course:
    training = Training.model_validate(
        {"epochs": 3, "batch_size": 8, "validation": 0.2, "ema": 0.9, "label_smoothing": 0.1} | settings
    )
    return train(
        model, defense, data, ThreatModel(norm="linf", epsilon=0.1), training, num_classes=3, seed=4,
        fabric=fabric(training, CPU), progress=told, what="training it", folder=folder,
    )  # fmt: skip


def flat(model: nn.Module) -> Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize("names", DEFENSES, ids=str)
@pytest.mark.parametrize("at", [2, 5, 8])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_killed_and_resumed_it_ends_with_the_same_weights(
    names: list[Any], at: int, optimizer: str, data: Data, tmp_path: Path, registry: Registry
) -> None:
    """With dropout, BatchNorm, averaged weights and a defense's memory; killed in each of its three epochs."""
    defense = stack([registry.create("defense", name) for name in names])
    undisturbed, model = network(), network()
    course = fit(undisturbed, data, Stack(members=(Kill(at=0), *defense.members)), None, Told(), optimizer=optimizer)
    counted.clear()
    killed = Stack(members=(Kill(at=at), *defense.members))
    with pytest.raises(Killed):
        fit(copy.deepcopy(model), data, killed, tmp_path, Told(), optimizer=optimizer)
    resumed = network()
    again = fit(resumed, data, killed, tmp_path, Told(), optimizer=optimizer)
    assert len(counted) == 9 + at - (at - 1) // 3 * 3, "what was over is not done again"
    assert torch.equal(flat(resumed), flat(undisturbed))
    assert [epoch.loss for epoch in again.epochs] == [epoch.loss for epoch in course.epochs]
    assert again.kept == course.kept


def test_it_goes_on_inside_an_epoch(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.training.loop._SAVE", -1.0)
    monkeypatch.setattr("guard.training.loop._EVERY", 1)
    undisturbed, resumed = network(), network()
    fit(undisturbed, data, NEVER, None, Told())
    counted.clear()
    with pytest.raises(Killed):
        fit(network(), data, Stack(members=(Kill(at=6),)), tmp_path, Told())
    fit(resumed, data, Stack(members=(Kill(at=6),)), tmp_path, Told())
    assert len(counted) == 10, "only the update that was killed is done again"
    assert torch.equal(flat(resumed), flat(undisturbed))


@pytest.mark.parametrize("size", [0, 7, 200, -10])
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(data: Data, size: int, tmp_path: Path) -> None:
    undisturbed, resumed, told = network(), network(), Told()
    fit(undisturbed, data, NEVER, None, Told())
    counted.clear()
    with pytest.raises(Killed):
        fit(network(), data, Stack(members=(Kill(at=7),)), tmp_path, Told())
    last = tmp_path / "checkpoint.safetensors"
    content = last.read_bytes()
    last.write_bytes(content[:size])
    fit(resumed, data, Stack(members=(Kill(at=7),)), tmp_path, told)
    assert len(told.lines) == 1
    assert told.lines[0].startswith(f"checkpoint '{last}' is damaged (")
    assert told.lines[0].endswith("); going on from the one before")
    assert "\n" not in told.lines[0]
    assert torch.equal(flat(resumed), flat(undisturbed))


def test_where_both_are_damaged_it_begins_anew(data: Data, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    (tmp_path / "checkpoint-before.safetensors").write_bytes(b"{")
    undisturbed, resumed, told = network(), network(), Told()
    fit(undisturbed, data, NEVER, None, Told())
    fit(resumed, data, NEVER, tmp_path, told)
    assert [line.rsplit("; ", 1)[1] for line in told.lines] == ["going on from the one before", "beginning anew"]
    assert torch.equal(flat(resumed), flat(undisturbed))


def test_a_checkpoint_holds_what_it_was_given(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert not checkpoints.exist
    assert checkpoints.load(print) is None
    for number in range(3):
        checkpoints.save({"x": torch.full((2,), number)}, f"note {number}")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "checkpoint-before.safetensors",
        "checkpoint.safetensors",
    ]
    found = checkpoints.load(print)
    assert found is not None
    assert (found[0]["x"].tolist(), found[1]) == ([2, 2], "note 2")
    checkpoints.clear()
    assert not checkpoints.exist


def test_a_disk_that_takes_no_checkpoint_is_said_and_the_old_ones_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"x": torch.zeros(2)}, "old")

    def full(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("guard.training.checkpoint.safetensors.torch.save_file", full)
    with pytest.raises(InputError, match=r"^checkpoint '.*' cannot be written: .*No space.*Make room"):
        checkpoints.save({"x": torch.ones(2)}, "new")
    found = checkpoints.load(print)
    assert found is not None
    assert found[1] == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_killed_between_the_last_checkpoint_and_its_report_it_is_reported_again(data: Data, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def dies(course: Course, weights: dict[str, Tensor]) -> None:
        if course.epoch == 3:
            raise Killed

    def watched(course: Course, weights: dict[str, Tensor]) -> None:
        told.append((len(course.epochs), len(weights)))

    training = Training(epochs=3, batch_size=8)
    rest = {"num_classes": 3, "seed": 4, "fabric": fabric(training, CPU), "what": "it", "folder": tmp_path}
    threat = ThreatModel(norm="linf", epsilon=0.1)
    with pytest.raises(Killed):
        train(network(), Stack(), data, threat, training, progress=Told(), watch=dies, **rest)  # type: ignore[arg-type]
    train(network(), Stack(), data, threat, training, progress=Told(), watch=watched, **rest)  # type: ignore[arg-type]
    assert told == [(3, 9)]


def test_a_network_in_channels_last_is_saved(data: Data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 3))
    course = fit(net.to(memory_format=torch.channels_last), data, Stack(), tmp_path, Told())  # type: ignore[call-overload]
    assert course.kept is not None
    assert Checkpoints(tmp_path).exist


def test_a_checkpoint_of_another_network_is_one_line(data: Data, tmp_path: Path) -> None:
    fit(network(), data, Stack(), tmp_path, Told(), epochs=1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(InputError, match=r"the checkpoint is of another network, .*\. Remove its folder$"):
        fit(other, data, Stack(), tmp_path, Told(), epochs=2)
