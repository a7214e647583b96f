"""A key must change with everything that decides a result, and with nothing else."""

import copy
import functools
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guard.keys import UnkeyableError, _installed, component_key, key
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


TREE = {
    "mine.py": "from guard import Attack\nfrom {package}.near import TABLE, WIDTHS\nclass Mine(Attack):\n"
    "    name = 'mine'\n    def perturb(self, v, x, g, t, r):\n        from {package} import late\n"
    "        return TABLE['a'].move(x) + WIDTHS[0] + late.SHIFT\n",
    "near.py": "from . import far\nWIDTHS = (1, 2)\nclass A:\n    def move(x):\n        return x + far.FACTORS['a']\n"
    "TABLE = {{'a': A}}\n",
    "far.py": "FACTORS = {{'a': 1}}\n",
    "late.py": "SHIFT = 1\n",
    "unused.py": "NOTHING = 1\n",
}
PROGRAM = """
import sys
from pathlib import Path
from guard.keys import component_key
from guard.registry import load_file
sys.path.insert(0, sys.argv[1])
print(component_key(load_file(Path(sys.argv[1]) / "tree" / "mine.py").Mine()))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A plugin of several files."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for name, text in TREE.items():
        (folder / name).write_text(text.format(package="tree"))
    return tmp_path


def key_elsewhere(tree: Path) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tree)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_component_key_follows_what_its_module_imports(tree: Path) -> None:
    """Also through tables and constants, and what is imported only when the attack runs."""
    keys = [key_elsewhere(tree)]
    assert key_elsewhere(tree) == keys[0]
    edits = {"near.py": ("(1, 2)", "(3, 2)"), "far.py": ("'a': 1", "'a': 2"), "late.py": ("= 1", "= 2")}
    for name, edit in edits.items():
        file = tree / "tree" / name
        file.write_text(file.read_text().replace(*edit))
        keys.append(key_elsewhere(tree))
    assert len(set(keys)) == 4
    (tree / "tree" / "unused.py").write_text("NOTHING = 2\n")
    assert key_elsewhere(tree) == keys[-1]


def test_a_component_key_follows_a_reload_and_not_a_late_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = "reloaded_tree"
    (tmp_path / package).mkdir()
    for name, text in TREE.items():
        (tmp_path / package / name).write_text(text.format(package=package))
    mine = importlib.import_module(f"{package}.mine").Mine()
    before = component_key(mine)
    importlib.import_module(f"{package}.late")
    assert component_key(mine) == before
    near = tmp_path / package / "near.py"
    near.write_text(near.read_text().replace("x + far", "x - far"))
    assert component_key(mine) == before, "what runs is not yet what the file says"
    importlib.reload(sys.modules[f"{package}.near"])
    assert component_key(mine) != before


@pytest.mark.parametrize("name", ["square", "autoattack"])
@pytest.mark.parametrize("module", ["square", "squares"])
def test_a_shipped_key_follows_the_modules_behind_it(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = Registry.load().create("attack", name)
    before, read = component_key(attack), Path.read_bytes
    assert component_key(attack) == before
    file = Path(sys.modules[f"guard_plugins.attacks.{module}"].__file__ or "")
    monkeypatch.setattr("guard.keys._READ", {})
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path == file else b""))
    assert component_key(attack) != before


@pytest.mark.parametrize("value", ["(1, 3)", "{'a': 3}", "[1, 3]"])
def test_variables_of_a_notebook_count(value: str) -> None:
    text = (
        "from guard import Attack\nTABLE = {}\nclass Mine(Attack):\n    name = 'mine'\n"
        "    def perturb(self, v, x, g, t, r):\n        return x + len(TABLE)\n"
    )

    def made(value: str) -> str:
        space: dict[str, Any] = {"__name__": "no_such_file"}
        exec(text.format(value), space)
        return component_key(space["Mine"]())

    assert made(value) == made(value)
    assert made(value) != made("(1, 2)")


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
