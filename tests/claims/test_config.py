"""Claim configs: what is refused, in one line, before anything is computed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from guard import InputError, Registry, configfile
from guard.claims.config import ClaimConfig
from guard.claims.selecting import pairs
from guard.configschema import schema

CONFIGS = Path(__file__).parents[2] / "configs" / "claims"
EVALUATE: dict[str, Any] = {
    "dataset": "digits",
    "model": {"name": "small-cnn", "weights": "x.safetensors"},
    "threat": {"norm": "linf", "epsilon": "8/255"},
    "attacks": ["fgsm", {"name": "pgd", "as": "strong"}],
    "defenses": ["none", "median"],
}
LINE = {"lower": {"attack": "strong", "defense": "none"}, "higher": {"attack": "fgsm", "defense": "none"}}
CUES = {"dataset": {"name": "shapes", "split": "conflict"}, "model": EVALUATE["model"]}
CUE = {"lower": "shape", "higher": "texture"}
SHUFFLE = {"dataset": "digits", "model": EVALUATE["model"], "sides": [4, 2]}


def read(registry: Registry, change: dict[str, Any] | None = None, /, **keys: Any) -> ClaimConfig:
    base: dict[str, Any] = {"claim": "X.", "evaluate": EVALUATE | (change or {}), "expect": [LINE]}
    return ClaimConfig.of({key: value for key, value in (base | keys).items() if value}, registry.create, "x.yaml")


def refused(registry: Registry, change: dict[str, Any] | None = None, /, **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        pairs(read(registry, change, **keys))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lines_select_cells_by_their_place_in_the_plan(registry: Registry) -> None:
    assert pairs(read(registry)) == [(1, 0)]
    lines = [
        LINE,
        {"lower": {"attack": "fgsm", "defense": "median"}, "higher": {"attack": "strong", "defense": "none"}},
    ]
    assert pairs(read(registry, expect=lines)) == [(1, 0), (2, 1)]


def test_every_key_selects(registry: Registry) -> None:
    evaluate = {
        "attacks": ["fgsm"],
        "defenses": ["median"],
        "knowledge": ["adaptive", "oblivious"],
        "model": [{"name": "small-cnn", "weights": "x"}, {"name": "strided-cnn", "weights": "x"}],
        "threat": [{"norm": "linf", "epsilon": "4/255"}, {"norm": "linf", "epsilon": "8/255"}],
    }
    one = {"model": "small-cnn", "knowledge": "oblivious", "epsilon": "8/255"}
    other = {"model": "strided-cnn", "knowledge": "adaptive", "epsilon": 4 / 255}
    assert pairs(read(registry, evaluate, expect=[{"lower": one, "higher": other}])) == [(3, 4)]


@pytest.mark.parametrize(
    ("lower", "text"),
    [
        ({"attack": "storng", "defense": "none"}, "expect[0].lower selects no cell, for no attack is 'storng' there. "),
        ({"attack": "fgsm", "epsilon": 0.3}, "for no epsilon is '0.3' there. Known: 8/255"),
        (
            {"attack": "strong"},
            "expect[0].lower selects 2 cells: strong on none (adaptive, small-cnn, linf 8/255, untargeted), "
            "strong on median (adaptive, small-cnn, linf 8/255, untargeted). Add defense",
        ),
        ({}, "expect[0].lower selects 4 cells: "),
        ({"attack": "fgsm", "defense": "none"}, "expect[0] compares fgsm on none (adaptive, small-cnn, linf 8/255, "),
        ({"atack": "fgsm"}, "expect[0].lower has no key 'atack' (x.yaml). Did you mean 'attack'?"),
    ],
    ids=str,
)
def test_selectors_that_do_not_select_one_cell(registry: Registry, lower: dict[str, Any], text: str) -> None:
    assert text in refused(registry, expect=[LINE | {"lower": lower}])


def test_cells_that_no_key_tells_apart(registry: Registry) -> None:
    found = refused(registry, {"goal": ["untargeted", {"targets": "next"}]})
    assert found.endswith("no key of a line tells them apart")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"shuffle": SHUFFLE}, "a claim has one of evaluate, shuffle and cues (x.yaml)"),
        ({"evaluate": None}, "a claim has one of evaluate, shuffle and cues (x.yaml)"),
        ({"claim": "  "}, "it says nothing"),
        ({"expect": [{"side": 4, "lower": "pixels", "higher": "blocks"}]}, "expect[0] does not fit what is computed"),
        ({"evaluate": None, "shuffle": SHUFFLE}, "expect[0] does not fit what is computed"),
        (
            {"evaluate": None, "shuffle": SHUFFLE, "expect": [{"side": 8, "lower": "pixels", "higher": "blocks"}]},
            "expect[0] has side 8, and sides are 4, 2",
        ),
        (
            {"evaluate": None, "shuffle": SHUFFLE, "expect": [{"side": 4, "lower": "pixels", "higher": "pixels"}]},
            "lower and higher are both pixels",
        ),
        ({"expect": [LINE | {"by": 5}]}, "by is 5 (x.yaml, expect[0]); it must be below 1"),
        ({"seeds": [1, 1]}, "1 is listed twice"),
        ({"expect": [LINE | {"figure": "jump"}]}, "a jump is that of a layer"),
        ({"expect": [LINE | {"layer": "4"}]}, "layer is of a jump, and figure is robust-accuracy"),
        ({"expect": [LINE | {"figure": "shape-bias"}]}, "expect[0] is about shape-bias (x.yaml); write cues: "),
        ({"evaluate": None, "cues": CUES}, "expect[0] does not fit what is computed (x.yaml); write {lower: shape, "),
        ({"cues": CUES}, "cues: evaluate names the models"),
        ({"cues": {"dataset": CUES["dataset"]}, "evaluate": None, "expect": [CUE]}, "cues: no model is named"),
        ({"cues": {"dataset": CUES["dataset"], "training": {}}}, "cues: training is that of evaluate"),
        (
            {"evaluate": None, "cues": CUES | {"dataset": "digits"}, "expect": [CUE]},
            "cues: data set 'digits' does not say what the textures of its images are",
        ),
        ({"evaluate": None, "cues": CUES, "expect": [CUE | {"lower": "texture"}]}, "lower and higher are both texture"),
        ({"expect": None}, "the config lacks the key 'expect' (x.yaml). Add expect: "),
    ],
    ids=str,
)
def test_what_is_no_claim(registry: Registry, keys: dict[str, Any], text: str) -> None:
    assert text in refused(registry, **keys)


@pytest.mark.parametrize(("key", "value"), [("seed", 3), ("plugins", ["x.py"])])
def test_what_stands_beside_the_evaluation(registry: Registry, key: str, value: Any) -> None:
    assert f"evaluate has '{key}'" in refused(registry, {key: value})


@pytest.mark.parametrize(
    ("evaluate", "what"),
    [
        ({"model": "small-cnn"}, "model 'small-cnn' is trained"),
        ({"defenses": ["none", {"name": "adversarial-training", "as": "at"}]}, "defense 'at' is trained"),
        ({"attacks": ["fgsm", {"name": "pgd", "as": "strong"}, "uap"]}, "attack 'uap' is trained"),
        ({"knowledge": ["adaptive", {"transfer": "strided-cnn"}]}, "model 'strided-cnn' is trained"),
    ],
    ids=str,
)
def test_what_is_trained_needs_three_seeds(registry: Registry, evaluate: dict[str, Any], what: str) -> None:
    for seeds in ([0], [0, 1]):
        assert refused(registry, evaluate, seeds=seeds).startswith(what)
    assert read(registry, evaluate, seeds=[0, 1, 2]).trained in what


def test_a_shape_bias_is_of_a_defended_model_whatever_attacks_it(registry: Registry) -> None:
    line = {"figure": "shape-bias", "lower": {"defense": "none"}, "higher": {"defense": "median"}}
    cues = {"dataset": CUES["dataset"]}
    assert pairs(read(registry, cues=cues, expect=[line])) == [(0, 2)]
    assert "expect[0].lower selects 2 cells" in refused(registry, cues=cues, expect=[line | {"lower": {}}])


def test_what_is_not_trained_needs_one(registry: Registry) -> None:
    assert read(registry).trained == ""
    assert read(registry).seeds == (0,)
    line = {"side": 4, "lower": "pixels", "higher": "blocks"}
    assert read(registry, evaluate=None, shuffle=SHUFFLE, expect=[line]).trained == ""
    assert read(registry, evaluate=None, cues=CUES, expect=[CUE]).trained == ""
    assert "is trained" in refused(registry, evaluate=None, cues=CUES | {"model": "small-cnn"}, expect=[CUE])
    found = refused(registry, evaluate=None, shuffle=SHUFFLE | {"model": "small-cnn"}, expect=[line])
    assert found.startswith("model 'small-cnn' is trained, and seeds are 1")


def test_what_is_written_reads_again(registry: Registry) -> None:
    config = read(registry)
    written = config.model_dump(mode="json", by_alias=True)
    assert ClaimConfig.of(written, registry.create) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_claims_that_ship(path: Path, registry: Registry) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    config, _ = configfile.read(ClaimConfig, path)
    validator = jsonschema.Draft202012Validator(schema(registry, ClaimConfig))
    assert [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))] == []
    assert len(config.seeds) >= 3
    assert pairs(config) or config.shuffle or config.cues
