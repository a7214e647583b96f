"""A key must change with everything that decides a result, and with nothing else."""

import copy
import functools
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guard.evaluation.keys import UnkeyableError, _installed, component_key, key
from guard.registry import Registry, load_file

FILE = """
import torch
SCALE = {scale}
def helper(x):
    return x * {factor}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)
        self.wrapper = lambda x: x + {shift}
    def forward(self, x):
        return helper(self.wrapper(self.fc(x))) * SCALE
"""


def net_from(tmp_path: Path, **values: int) -> nn.Module:
    path = tmp_path / "net.py"
    path.write_text(FILE.format(**({"scale": 1, "factor": 2, "shift": 3} | values)))
    torch.manual_seed(0)
    module: nn.Module = load_file(path).Net()
    return module


def test_the_same_content_has_the_same_key() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    assert key(net) == key(copy.deepcopy(net))
    weights = dict(net.state_dict())
    assert key(weights) == key({name: value.clone() for name, value in weights.items()})


def test_sharing_does_not_matter() -> None:
    word = "".join(["some", "thing"])
    assert key([word, word]) == key(["something", "".join(["some", "thing"])])
    part = [1, 2]
    assert key([part, part]) == key([[1, 2], [1, 2]])


def test_cycles_end() -> None:
    loop: list[object] = [1]
    loop.append(loop)
    other: list[object] = [2]
    other.append(other)
    assert key(loop) != key(other)


@pytest.mark.parametrize("change", ["weight", "buffer", "attribute", "dtype"])
def test_any_change_of_state_changes_the_key(change: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = key(net)
    with torch.no_grad():
        if change == "weight":
            net[0].weight[0, 0, 0, 0] += 1e-6
        elif change == "buffer":
            net[1].running_mean[0] += 1e-6
        elif change == "attribute":
            net[1].eps = 1e-4
        else:
            net.double()
    assert key(net) != before


@pytest.mark.parametrize("change", ["scale", "factor", "shift"])
def test_code_that_the_state_does_not_show_changes_the_key(tmp_path: Path, change: str) -> None:
    assert key(net_from(tmp_path)) == key(net_from(tmp_path))
    assert key(net_from(tmp_path)) != key(net_from(tmp_path, **{change: 1000}))


def test_what_has_no_content_is_refused() -> None:
    key(open)  # a builtin function has a name
    with Path(__file__).open() as file, pytest.raises(UnkeyableError):
        key(file)


def test_a_component_key_follows_parameters_and_source(tmp_path: Path) -> None:
    registry = Registry.load()
    pgd = registry.create("attack", "pgd")
    assert component_key(pgd) == component_key(registry.create("attack", {"name": "pgd", "steps": 10}))
    assert component_key(pgd) != component_key(registry.create("attack", {"name": "pgd", "steps": 11}))
    text = (
        "from guard import Attack\nclass Mine(Attack):\n    name = 'mine'\n"
        "    def perturb(self, v, x, g, t, r):\n        return x{}\n"
    )
    keys = []
    for ending in ("", ".clone()"):
        path = tmp_path / "mine.py"
        path.write_text(text.format(ending))
        keys.append(component_key(load_file(path).Mine()))
    assert keys[0] != keys[1]


def test_a_class_of_a_notebook_is_keyed_by_its_code() -> None:
    """A notebook's __main__ has no file: only the code itself tells one cell from its edited successor."""
    text = (
        "from guard import Attack\n"
        "def helper(x):\n    return x + {}\n"
        "class Mine(Attack):\n    name = 'mine'\n    def perturb(self, v, x, g, t, r):\n        return helper(x)\n"
    )

    def made(number: int) -> str:
        space: dict[str, Any] = {"__name__": "no_such_file"}
        exec(text.format(number), space)
        return component_key(space["Mine"]())

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_a_package_without_init_is_no_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for number in range(2):
        folder = tmp_path / f"spaced{number}"
        folder.mkdir()
        (folder / "nets.py").write_text(FILE.format(scale=1, factor=number, shift=3))
        module = importlib.import_module(f"spaced{number}.nets")
        torch.manual_seed(0)
        net = module.Net()
        type(net).__module__ = "spaced0.nets"
        module.helper.__module__ = "spaced0.nets"
        keys.append(key(net))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("value", [(1, 3), [1, 3], {"a": 3}, torch.tensor([1, 3]), nn.ReLU])
def test_class_attributes_count(value: object) -> None:
    def made(scales: object) -> nn.Module:
        return type("Net", (nn.Module,), {"scales": scales, "__module__": "no_such_file"})()  # type: ignore[no-any-return]

    assert key(made(value)) == key(made(copy.copy(value)))
    assert key(made(value)) != key(made((1, 2)))


def test_a_cached_property_has_content() -> None:
    class Net(nn.Module):
        @functools.cached_property
        def scale(self) -> int:
            return 3

    assert key(Net()) == key(Net())


def test_installed_code_counts_by_name_and_version() -> None:
    assert _installed("torch.nn.modules.linear") == f"torch.nn.modules.linear {torch.__version__}"
    assert _installed("json.decoder") == "json.decoder"
    assert _installed("_thread") == "_thread"
    assert _installed("__main__") is None
    assert _installed(__name__) is None
