"""Reading a config file: YAML, what --set changes, plugins, and the schema."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from guard import InputError, Registry, ThreatModel
from guard.config import EvaluationConfig
from guard.configfile import read
from guard.configparts import Config
from guard.configschema import schema
from guard.recipe import Training
from guard.trainingconfig import TrainingConfig

CONFIGS = Path(__file__).parents[1] / "configs"
CONFIG = """
dataset: digits
model: small-cnn
threat: {norm: linf, epsilon: 8/255}
attacks: [fgsm]
"""
PLUGIN = '''
from guard import Attack, hookimpl

class Corner(Attack):
    """One step to a corner."""
    name = "corner"
    def perturb(self, victim, images, goal, threat, rng):
        return threat.project(images + threat.epsilon * rng.signs(), images)

@hookimpl
def guard_attacks(): return [Corner]
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(CONFIG)
    return path


def test_a_file_is_read(file: Path) -> None:
    config, registry = read(EvaluationConfig, file)
    assert config.threat == (ThreatModel(norm="linf", epsilon=8 / 255),)
    assert config.attacks[0].attack == registry.create("attack", "fgsm")


def test_set_goes_on_top_and_its_value_is_yaml(file: Path) -> None:
    texts = ["threat.epsilon=4/255", "training.epochs=3", "training.lr=1e-3", "attacks=[fgsm, {name: pgd, steps: 7}]"]
    config, _ = read(EvaluationConfig, file, [*texts, "seed=1", "seed=2"])
    assert config.threat[0] == ThreatModel(norm="linf", epsilon=4 / 255)
    assert config.training == Training(epochs=3, lr=1e-3)
    assert [entry.label for entry in config.attacks] == ["fgsm", "pgd"]
    assert config.attacks[1].attack.model_dump()["steps"] == 7
    assert config.seed == (2,)


def test_a_value_may_hold_an_equals_sign(file: Path) -> None:
    config, _ = read(EvaluationConfig, file, ["attacks=[{name: fgsm, as: a=b}]"])
    assert config.attacks[0].label == "a=b"


def test_plugins_of_a_config_are_relative_to_it_and_those_of_the_command_line_are_not(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "mine.py").write_text(PLUGIN)
    (elsewhere / "other.py").write_text(PLUGIN.replace("orner", "enter"))
    file.write_text(CONFIG + "plugins: [./mine.py]\n")
    monkeypatch.chdir(elsewhere)
    config, registry = read(EvaluationConfig, "../x.yaml", ["attacks=[corner, center]"], ["other.py"])
    assert [entry.label for entry in config.attacks] == ["corner", "center"]
    assert config.plugins == ("../mine.py", "other.py")
    assert registry.origin(config.attacks[0].attack).plugin == "mine"


def test_anchors_and_merges_are_yaml_and_no_duplicates(file: Path) -> None:
    file.write_text(CONFIG + "defenses: [&one {name: bit-depth, bits: 2}, {<<: *one, bits: 1}]\n")
    config, _ = read(EvaluationConfig, file)
    assert [entry.stack.members[0].model_dump()["bits"] for entry in config.defenses] == [2, 1]


def test_every_reference_of_the_schema_leads_somewhere(file: Path) -> None:
    _, registry = read(EvaluationConfig, file)
    found = schema(registry)
    references = set(_references(found))
    assert {"#/$defs/labelled-attack", "#/$defs/labelled-defense", "#/$defs/model"} <= references
    assert {name.removeprefix("#/$defs/") for name in references} <= found["$defs"].keys()
    assert found["$defs"]["attack"]["anyOf"][0] == {"enum": sorted(registry.classes["attack"])}
    assert found["$defs"]["attack.pgd"]["properties"]["steps"]["default"] == 10
    assert found["$defs"]["defense.adversarial-training"]["properties"]["attack"]["$ref"].startswith("#/$defs/")
    assert "as" in found["$defs"]["labelled-attack.pgd"]["properties"]
    assert "as" not in found["$defs"]["attack.pgd"]["properties"]


@pytest.mark.parametrize(
    ("more", "valid"),
    [
        ({}, True),
        ({"attacks": [{"name": "pgd", "steps": 3, "as": "x", "step_size": "2/255"}]}, True),
        ({"model": {"name": "torchvision:resnet18", "weights": "x"}}, True),
        ({"defenses": [["median", {"name": "bit-depth"}], "m.py:g", {"name": "none", "as": "q"}]}, True),
        ({"knowledge": ["adaptive", {"transfer": "small-cnn"}]}, True),
        ({"defenses": [{"name": "adversarial-training", "attack": {"name": "pgd", "steps": 3}}]}, True),
        ({"attacks": ["pdg"]}, False),
        ({"attacks": [{"name": "pgd", "step": 3}]}, False),
        ({"attacks": [{"name": "pgd", "steps": -1}]}, False),
        ({"threat": {"norm": "linf", "epsilon": -1}}, False),
        ({"defense": "none"}, False),
        ({"defenses": [{"name": "adversarial-training", "attack": {"name": "pgd", "as": "x"}}]}, False),
    ],
    ids=str,
)
def test_the_schema_takes_what_guard_takes(more: dict[str, Any], valid: bool, file: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    _, registry = read(EvaluationConfig, file)
    validator = jsonschema.Draft202012Validator(schema(registry))
    assert validator.is_valid(yaml.safe_load(CONFIG) | more) is valid


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo", "--set 'foo' is no key=value. Write --set threat.epsilon=0.1"),
        ("=3", "--set '=3' is no key=value. Write --set threat.epsilon=0.1"),
        ("threat..x=3", "--set 'threat..x=3' is no key=value. Write --set threat.epsilon=0.1"),
        (
            "model.weights=a.pt",
            "--set 'model.weights=a.pt' finds a single value under model, which has no weights. "
            "Set all of it: --set 'model={...}'",
        ),
        (
            "attacks.pgd.steps=3",
            "--set 'attacks.pgd.steps=3' finds a list under attacks, which has no pgd.steps. "
            "Set all of it: --set 'attacks={...}'",
        ),
        (
            "attacks=[a",
            "--set 'attacks=[a' has no YAML value: line 1, column 3: expected ',' or ']', but got '<stream end>'. "
            "Quote it, or mend it",
        ),
    ],
)
def test_a_set_that_cannot_be_done_says_what_to_type(text: str, message: str, file: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(EvaluationConfig, file, [text])
    assert str(caught.value) == message


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [name for value in part.values() for name in _references(value)]
    return [name for value in part for name in _references(value)] if isinstance(part, list) else []


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schemas_take_the_configs_that_ship(path: Path, registry: Registry) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    data = yaml.safe_load(path.read_text())
    kinds: list[type[Config]] = [EvaluationConfig, TrainingConfig]
    mine, other = kinds if "attacks" in data else reversed(kinds)
    assert jsonschema.Draft202012Validator(schema(registry, mine)).is_valid(data)
    assert not jsonschema.Draft202012Validator(schema(registry, other)).is_valid(data)
