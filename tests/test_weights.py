"""Weights come back as they were written; nothing else is read."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from guard import InputError
from guard.classifier import model
from guard.weights import load_weights, save_weights


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.anything"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"net.{key}": value for key, value in state.items()},
    ],
)
def test_reads_what_others_write(name: str, wrap: Any, tmp_path: Path) -> None:
    trained, empty = net(), net()
    state = wrap(trained.state_dict())
    (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    load_weights(empty, tmp_path / name)
    assert same(trained, empty)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_reads_a_checkpoint(key: str, tmp_path: Path) -> None:
    trained, empty = net(), net()
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"epoch": 3, key: state, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    load_weights(empty, tmp_path / "w.pt")
    assert same(trained, empty)


def test_a_prefix_that_the_model_has_itself_is_kept(tmp_path: Path) -> None:
    trained, empty = model(net(), mean=(0.5,)), model(net(), mean=(0.5,))
    save_weights(trained, tmp_path / "w.safetensors")
    load_weights(empty, tmp_path / "w.safetensors")
    assert same(trained, empty)


def test_old_checkpoints_lack_the_batch_counter(tmp_path: Path) -> None:
    trained, empty = net(), net()
    state = {key: value for key, value in trained.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "w.pt")
    load_weights(empty, tmp_path / "w.pt")
    assert same(trained, empty)


class Shared(nn.Module):
    """Two names for one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.other = self.one


@pytest.mark.parametrize("make", [Shared, lambda: net().to(memory_format=torch.channels_last), lambda: net().half()])
def test_saves_shared_and_strided_tensors(make: Any, tmp_path: Path) -> None:
    trained, empty = make(), make()
    save_weights(trained, tmp_path / "deep" / "w.safetensors")
    load_weights(empty, tmp_path / "deep" / "w.safetensors")
    assert same(trained, empty)


def test_a_failed_save_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(net(), path)
    before = path.read_bytes()

    def half(state: dict[str, Tensor], file: Path, metadata: object = None) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_weights(net(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Code:
    """A pickle that runs a command when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_runs_no_code(by: str, protocol: int, tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "w.pt"
    if by == "torch":
        torch.save({"state_dict": Code(proof)}, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(Code(proof), protocol=protocol))
    with pytest.raises(InputError, match=r"w.pt' hold more than tensors.*torch.save\(net.state_dict\(\)") as caught:
        load_weights(net(), path)
    assert "\n" not in str(caught.value)
    assert not proof.exists()
    if by == "pickle":  # the bait is good: pickle itself would have run it
        pickle.loads(path.read_bytes())
        assert proof.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="hold more than tensors"):
        load_weights(net(), tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(name: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / name
    (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(net().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputError, match=f"{name}' are damaged") as caught:
        load_weights(net(), path)
    assert "\n" not in str(caught.value)


def test_a_text_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("hello world\n")
    with pytest.raises(InputError, match="are damaged"):
        load_weights(net(), tmp_path / "w.pt")
    for path in (tmp_path / "no.pt", tmp_path):
        with pytest.raises(InputError, match=re.escape(f"there is no weights file '{path}'")):
            load_weights(net(), path)


def test_numbers_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "w.pt")
    with pytest.raises(InputError, match="no mapping of names to tensors"):
        load_weights(net(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {k: v for k, v in state.items() if k[0] != "3"}, "2 of 9 missing (first '3.weight')"),
        (lambda state: state | {"extra": torch.zeros(1)}, "1 unexpected (first 'extra')"),
        (
            lambda state: state | {"3.weight": torch.zeros(10, 8), "3.bias": torch.zeros(10)},
            "2 of another shape (first '3.weight': (10, 8) in the file, (3, 8) in the model)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str, tmp_path: Path) -> None:
    target = net()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    torch.save(change(net().state_dict()), tmp_path / "w.pt")
    with pytest.raises(InputError, match=re.escape(message)):
        load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_weights_for_other_classes_leave_a_new_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained, other = net(), net()
    other[3] = nn.Linear(8, 5)
    before = other[3].weight.clone()
    save_weights(trained, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors", new_head=True)
    assert torch.equal(other[0].weight, trained[0].weight)
    assert torch.equal(other[3].weight, before)
    text = f"weights '{tmp_path / 'w.safetensors'}' are for 3 classes: the last layer, 3, is a new one for 5"
    assert [record.getMessage() for record in caplog.records] == [text]
    with pytest.raises(InputError, match="do not fit"):
        load_weights(other, tmp_path / "w.safetensors")  # to be evaluated, it has to be trained first
    caplog.clear()
    load_weights(net(), tmp_path / "w.safetensors", new_head=True)
    assert not caplog.records
    wider = net()
    wider[3] = nn.Linear(9, 5)
    with pytest.raises(InputError, match="do not fit"):
        load_weights(wider, tmp_path / "w.safetensors", new_head=True)
