"""Plugins by every door: who provides what, and what happens to one that is broken."""

import importlib
import pickle
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from guard import Attack, Defense, InputError, Registry
from guard.errors import PluginError, UnknownName

SITE = Path(__file__).parent / "data" / "site"
ROOT = Path(__file__).parents[1]
Install = Callable[..., None]

CORNER = """
from guard import Attack, hookimpl
class Corner(Attack):
    \"\"\"One step to a random corner of the ball.\"\"\"
    name = "my-corner"
    def perturb(self, victim, images, goal, threat, rng):
        return threat.project(images + threat.epsilon * rng.signs(), images)
@hookimpl
def guard_attacks(): return [Corner]
"""


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """install("good", "twin"): puts these folders of data/site on the path, as pip would."""

    def onto_path(*names: str) -> None:
        for name in names:
            monkeypatch.syspath_prepend(str(SITE / name))
        importlib.invalidate_caches()

    return onto_path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(text, name="mine.py") -> a plugin file."""

    def make(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return make


def test_a_third_partys_components_are_attributed_to_it(install: Install) -> None:
    install("good")
    registry = Registry.load()
    for kind, name in (("attack", "corner"), ("defense", "keep")):
        found = registry.find(kind, name)
        assert registry.origin(found) == registry.origin(found())
        assert str(registry.origin(found)) == "'good' (guard-good 1.2)"
    assert str(registry.origin(registry.find("attack", "bim"))).startswith("'gradient-sign' (guard-robustness ")
    assert registry.find("attack", "corner") in set(registry)


def test_a_plugin_is_asked_alone_so_that_no_class_is_attributed_to_another(install: Install) -> None:
    registry = Registry.load()
    for found in registry:
        assert registry.origin(found).plugin in registry.plugins
        points = {point.name: point.value for point in entry_points(group="guard")}
        assert points[registry.origin(found).plugin] == found.__module__


def test_two_plugins_with_one_name_are_an_error_that_names_both(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("twin")
    with pytest.raises(PluginError) as caught:
        Registry.load()
    version = next(point.dist.version for point in entry_points(group="guard", name="pgd") if point.dist)
    assert str(caught.value) == (
        f"two plugins provide an attack named 'pgd': 'pgd' (guard-robustness {version}) and 'mypgd' (guard-mypgd 0.3). "
        "Rename one, or set GUARD_DISABLE_PLUGINS=mypgd"
    )
    monkeypatch.setenv("GUARD_DISABLE_PLUGINS", "mypgd")
    assert Registry.load().find("attack", "pgd").__name__ == "PGD"
    monkeypatch.setenv("GUARD_DISABLE_PLUGINS", " pgd , momentum")
    assert Registry.load().find("attack", "pgd").__name__ == "MyPGD"


def test_a_broken_plugin_takes_nobody_down_and_is_named_when_a_name_is_missing(install: Install) -> None:
    before = Registry.load()
    install("good", "broken", "stray", "misspelt")
    registry = Registry.load()
    assert set(registry) - set(before) == {registry.find("attack", "corner"), registry.find("defense", "keep")}
    new = {name: why for name, why in registry.failures.items() if name not in before.failures}
    assert new == {
        "broken": "ModuleNotFoundError: No module named 'a_module_that_nobody_has'",
        "misspelt": "plugin 'misspelt' (guard-misspelt 0.5) implements 'guard_attack', which is no hook. "
        "Did you mean 'guard_attacks'?",
        "stray": "plugin 'stray' (guard-stray 0.4) returns 'pgd' from guard_attacks(), which is no Attack class. "
        "Return [MyClass]",
    }


def test_the_error_for_a_missing_name_is_one_line_however_many_plugins_are_broken() -> None:
    registry = Registry.load()
    registry.failures = {}
    with pytest.raises(UnknownName) as caught:
        registry.find("attack", "pdg", where="configs/audit.yaml, attacks[0]")
    assert str(caught.value) == "no attack is named 'pdg' (configs/audit.yaml, attacks[0]). Did you mean 'pgd'?"
    registry.failures = {"one": "ImportError: no x"}
    with pytest.raises(UnknownName) as caught:
        registry.find("attack", "pdg")
    assert str(caught.value).endswith("Did you mean 'pgd'? Plugin 'one' did not load (ImportError: no x)")
    registry.failures |= {"two": "y", "three": "z"}
    with pytest.raises(UnknownName) as caught:
        registry.find("attack", "pdg")
    assert str(caught.value).endswith("Plugin 'one' did not load (ImportError: no x), and 2 more did not load")


def test_what_is_unlike_any_name_lists_what_is_known() -> None:
    with pytest.raises(UnknownName, match=r"Known: .*bim, .*pgd"):
        Registry.load().create("attack", "zzzzzz")


def test_a_disabled_plugin_is_not_loaded(monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]) -> None:
    assert "pgd" in Registry.load().classes["attack"]
    registry = Registry.load(disable=["pgd"])
    assert "pgd" not in registry.classes["attack"]
    assert "pgd" not in registry.plugins
    monkeypatch.setenv("GUARD_DISABLE_PLUGINS", "mine")
    assert "my-corner" not in Registry.load(files=[write(CORNER)]).classes["attack"]


@pytest.mark.parametrize(("value", "traced"), [("1", True), ("0", False), ("", False)])
def test_tracing_prints_each_hook_call(
    value: str, traced: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUARD_TRACE_PLUGINS", value)
    Registry.load()
    assert ("guard: guard_attacks() -> pgd\n" in capsys.readouterr().err) == traced


def test_a_plugin_file_is_loaded_and_what_it_defines_can_be_pickled(write: Callable[..., Path]) -> None:
    path = write(CORNER)
    registry = Registry.load(files=[path])
    corner = registry.create("attack", "my-corner")
    assert pickle.loads(pickle.dumps(corner)) == corner
    assert str(registry.origin(corner)) == f"'mine' ({path})"
    assert type(corner) is Registry.load(files=[str(path), path]).find("attack", "my-corner")  # twice is once


def test_an_edited_plugin_file_is_loaded_anew(write: Callable[..., Path]) -> None:
    first = Registry.load(files=[write(CORNER)]).find("attack", "my-corner")
    second = Registry.load(files=[write(CORNER.replace("One step", "A step"))]).find("attack", "my-corner")
    assert first.__doc__ != second.__doc__


def test_a_plugin_file_may_share_its_stem_with_a_plugin_and_with_another_file(write: Callable[..., Path]) -> None:
    files = [write(CORNER, "pgd.py"), write(CORNER.replace("my-corner", "other"), "more/pgd.py")]
    registry = Registry.load(files=files)
    assert {"pgd", "my-corner", "other"} <= registry.classes["attack"].keys()
    assert registry.origin(registry.find("attack", "pgd")).distribution.startswith("guard-robustness")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name", "did not load: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def f(:", "did not load: SyntaxError: "),
        ("raise SystemExit(3)", "did not load: SystemExit: 3"),
        (CORNER.replace("return [Corner]", "raise ValueError('two\\nlines')"), "did not load: ValueError: two lines"),
        (CORNER.replace("[Corner]", "Corner"), "from guard_attacks(), which is no list. Return [MyClass]"),
        (CORNER.replace("[Corner]", "[Corner()]"), "from guard_attacks(), which is no Attack class. Return [MyClass]"),
        (CORNER.replace("guard_attacks", "guard_defenses"), "from guard_defenses(), which is no Defense class"),
        (CORNER.replace('name = "my-corner"', ""), 'returns Corner, which has no name. Write name = "my-attack"'),
        (CORNER.replace("my-corner", "My Corner"), "a name is lower-case words joined by hyphens"),
        (CORNER.replace("def perturb", "def pertrub"), "returns Corner, which lacks perturb. Write it"),
        (
            CORNER.replace("guard_attacks", "guard_atacks"),
            "'guard_atacks', which is no hook. Did you mean 'guard_attacks'?",
        ),
        (CORNER.replace("@hookimpl", ""), "has guard_attacks() without its mark. Write @hookimpl above it"),
        (CORNER.replace("guard_attacks()", "guard_attacks(config)"), "Argument(s) {'config'} are declared"),
        (
            CORNER.replace("[Corner]", "[Corner, type('B', (Corner,), {'__module__': __name__})]"),
            "returns two attacks named 'my-corner'. Rename one",
        ),
        (CORNER.replace("my-corner", "pgd"), "two plugins provide an attack named 'pgd': 'pgd' (guard-robustness"),
    ],
)
def test_a_plugin_file_with_a_fault_is_refused_in_one_line(text: str, message: str, write: Callable[..., Path]) -> None:
    with pytest.raises(PluginError) as caught:
        Registry.load(files=[write(text)])
    assert message in str(caught.value)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.py", ".", "notes.txt"])
def test_what_is_no_plugin_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(PluginError, match=r"^plugin file '.*' .*Give the path of a \.py file$"):
        Registry.load(files=[tmp_path / name])


class Mine(Attack):
    """Unregistered."""

    name = "mine"
    steps: int = 1

    def perturb(self, victim, images, goal, threat, rng):  # type: ignore[no-untyped-def]
        return images


def test_names_mappings_classes_and_instances_are_all_accepted(registry: Registry) -> None:
    assert registry.create("attack", "pgd") == registry.create("attack", {"name": "pgd"})
    assert registry.create("attack", {"name": "pgd", "steps": 7}).steps == 7
    mine = Mine(steps=3)
    assert registry.create("attack", mine) is mine
    assert registry.create("attack", Mine) == Mine()
    assert str(registry.origin(mine)) == f"'{Mine.__module__}' (not registered)"


@pytest.mark.parametrize("spec", [3, None, {"steps": 3}, {"name": 3}, Defense(), ["pgd"]], ids=repr)
def test_what_is_no_spec_is_refused(spec: object, registry: Registry) -> None:
    with pytest.raises(InputError, match=r" is no attack \(a\.yaml\)\. Write a name, or a mapping such as"):
        registry.create("attack", spec, where="a.yaml")


def test_a_misspelt_parameter_names_the_component_and_the_nearest(registry: Registry) -> None:
    with pytest.raises(InputError) as caught:
        registry.create("attack", {"name": "pgd", "step": 3}, where="configs/audit.yaml, attacks[0]")
    assert str(caught.value) == (
        "attack 'pgd' has no parameter 'step' (configs/audit.yaml, attacks[0]). Did you mean 'steps'?"
    )


def test_what_is_installed_is_what_pyproject_declares() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["guard"]
    installed = {
        point.name: point.value
        for point in entry_points(group="guard")
        if point.dist is not None and point.dist.name == "guard-robustness"
    }
    assert installed == declared


def test_nothing_is_loaded_when_guard_is_imported() -> None:
    """`import guard` is instant: neither torch nor a plugin comes with it, and no registry is kept anywhere."""
    code = "import guard, sys; print([m for m in ('torch', 'pluggy', 'pydantic', 'guard_plugins') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
