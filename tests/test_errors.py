"""Every bad input is told in one line: what is wrong with which value, whose it is, what to type instead."""

from pathlib import Path

import pytest

from guard.config import EvaluationConfig
from guard.configfile import read
from guard.errors import GuardError, InputError, PluginError

KEYS = {
    "dataset": "digits",
    "model": "small-cnn",
    "threat": "{norm: linf, epsilon: 8/255}",
    "attacks": "[fgsm]",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**keys: str) -> str:
    """x.yaml, with these keys instead."""
    Path("x.yaml").write_text("".join(f"{key}: {value}\n" for key, value in (KEYS | keys).items()))
    return "x.yaml"


def told(path: str, kind: type[GuardError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        read(EvaluationConfig, path)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attacks": "[pdg]"}, "no attack is named 'pdg' (x.yaml, attacks[0]). Did you mean 'pgd'?"),
        (
            {"defenses": "[none, [shape-bias, bit-dept]]"},
            "no defense is named 'bit-dept' (x.yaml, defenses[1]). Did you mean 'bit-depth'?",
        ),
        ({"dataset": "digit"}, "no dataset is named 'digit' (x.yaml, dataset). Did you mean 'digits'?"),
        ({"model": "small-cn"}, "no model is named 'small-cn' (x.yaml, model). Did you mean 'small-cnn'?"),
        (
            {"model": "[small-cnn, small-cn]"},
            "no model is named 'small-cn' (x.yaml, model[1]). Did you mean 'small-cnn'?",
        ),
        (
            {"knowledge": "{transfer: small-cn}"},
            "no model is named 'small-cn' (x.yaml, knowledge.transfer). Did you mean 'small-cnn'?",
        ),
        (
            {"defenses": "[none, {name: adversarial-training, attack: {name: pgd, step: 3}}]"},
            "attack 'pgd' has no parameter 'step' (x.yaml, defenses[1]). Did you mean 'steps'?",
        ),
        (
            {"defenses": "[{name: adversarial-training, attack: pdg}]"},
            "no attack is named 'pdg' (x.yaml, defenses[0]). Did you mean 'pgd'?",
        ),
    ],
)
def test_an_unknown_component(keys: dict[str, str], message: str) -> None:
    assert told(config(**keys)) == message


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("{name: pgd, step: 5}", "attack 'pgd' has no parameter 'step' (x.yaml, attacks[1]). Did you mean 'steps'?"),
        ("{name: pgd, steps: -1}", "steps of attack 'pgd' is -1 (x.yaml, attacks[1]); it must be above 0"),
        ("{name: pgd, steps: 1.5}", "steps of attack 'pgd' is 1.5 (x.yaml, attacks[1]); it must be a whole number"),
        ("{name: pgd, steps: many}", "steps of attack 'pgd' is 'many' (x.yaml, attacks[1]); it must be a whole number"),
        (
            "{name: pgd, steps: yes}",
            "steps of attack 'pgd': True is no number (x.yaml, attacks[1]); write a number",
        ),
        ("{name: pgd, steps: }", "steps of attack 'pgd' is empty (x.yaml, attacks[1]); it must be a whole number"),
        (
            "{name: pgd, loss: ce}",
            "loss of attack 'pgd' is 'ce' (x.yaml, attacks[1]); "
            "it must be 'cross-entropy', 'margin', 'dlr' or 'probability'",
        ),
        (
            "{name: pgd, step_size: 8/0}",
            "step_size of attack 'pgd': '8/0' divides by zero (x.yaml, attacks[1]); write 8/255 or 0.3",
        ),
        ("saved", "attack 'saved' lacks the parameter 'path' (x.yaml, attacks[1]). Add path: ..."),
        ("3", "3 is no attack (x.yaml, attacks[1]). Write a name, or a mapping such as {name: ..., key: value}"),
        (
            "{steps: 3}",
            "{'steps': 3} is no attack (x.yaml, attacks[1]). "
            "Write a name, or a mapping such as {name: ..., key: value}",
        ),
    ],
)
def test_a_parameter(attack: str, message: str) -> None:
    assert told(config(attacks=f"[fgsm, {attack}]")) == message


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("8", "epsilon is 8, more than the whole pixel range (x.yaml, threat); did you mean 8/255?"),
        ("1000", "epsilon is 1000, more than the whole pixel range (x.yaml, threat); images live in [0, 1]"),
        ("-0.1", "epsilon: -0.1 is not above 0 (x.yaml, threat); write 8/255 or 0.3"),
        ("0", "epsilon: 0 is not above 0 (x.yaml, threat); write 8/255 or 0.3"),
        ("-8/255", "epsilon: '-8/255' is no number (x.yaml, threat); write 8/255 or 0.3"),
        (".nan", "epsilon: nan is not above 0 (x.yaml, threat); write 8/255 or 0.3"),
        ("8/0", "epsilon: '8/0' divides by zero (x.yaml, threat); write 8/255 or 0.3"),
        ("true", "epsilon: True is no number (x.yaml, threat); write a number"),
        ("eight", "epsilon: 'eight' is no number (x.yaml, threat); write 8/255 or 0.3"),
        ("", "epsilon is empty (x.yaml, threat); it must be a number"),
    ],
)
def test_epsilon(written: str, message: str) -> None:
    assert told(config(threat=f"{{norm: linf, epsilon: {written}}}")) == message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attack": "[pgd]"}, "the config has no key 'attack' (x.yaml). Did you mean 'attacks'?"),
        (
            {"threat": "{norm: linf, eps: 0.1}"},
            "threat has no key 'eps' (x.yaml). Did you mean 'epsilon'?",
        ),
        (
            {"threat": "[{norm: l2, epsilon: 1}, {norm: l2}]"},
            "threat[1] lacks the key 'epsilon' (x.yaml). Add epsilon: ...",
        ),
        ({"training": "{epoch: 3}"}, "training has no key 'epoch' (x.yaml). Did you mean 'epochs'?"),
        ({"plugins": "3"}, "plugins is 3 (x.yaml); it must be a list of files, such as [./mine.py]"),
    ],
)
def test_a_key(keys: dict[str, str], message: str) -> None:
    assert told(config(**keys)) == message


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ("dataset", "dataset: digits"),
        ("model", "model: small-cnn"),
        ("threat", "threat: {norm: linf, epsilon: 8/255}"),
        ("attacks", "attacks: [fgsm, pgd]"),
    ],
)
def test_a_missing_key(missing: str, hint: str) -> None:
    text = "".join(f"{key}: {value}\n" for key, value in KEYS.items() if key != missing)
    Path("x.yaml").write_text(text)
    assert told("x.yaml") == f"the config lacks the key '{missing}' (x.yaml). Add {hint}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config 'x.yaml' is empty. Write at least dataset, model and threat"),
        ("# later\n", "config 'x.yaml' is empty. Write at least dataset, model and threat"),
        ("- digits\n", "config 'x.yaml' holds a list, not keys. Write dataset: ..., model: ..., and so on"),
        ("digits\n", "config 'x.yaml' holds a single value, not keys. Write dataset: ..., model: ..., and so on"),
        (
            "dataset: digits\nmodel: a: b\n",
            "config 'x.yaml' is no YAML: line 2, column 9: mapping values are not allowed here. Mend that line",
        ),
        (
            "dataset: digits\nattacks: [fgsm\n",
            "config 'x.yaml' is no YAML: line 3, column 1: expected ',' or ']', but got '<stream end>'. Mend that line",
        ),
        (
            "dataset: digits\nmodel: small-cnn\ndataset: mnist\n",
            "config 'x.yaml' is no YAML: line 3, column 1: the key 'dataset' stands twice. Mend that line",
        ),
        (
            "threat:\n  norm: linf\n  epsilon: 0.1\n  norm: l2\n",
            "config 'x.yaml' is no YAML: line 4, column 3: the key 'norm' stands twice. Mend that line",
        ),
        (
            "[a, b]: digits\n",
            "config 'x.yaml' is no YAML: line 1, column 1: found unhashable key. Mend that line",
        ),
        (
            "dataset: !!python/object/apply:os.system [ls]\n",
            "config 'x.yaml' is no YAML: line 1, column 10: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'. Mend that line",
        ),
    ],
)
def test_a_file_that_is_no_config(text: str, message: str) -> None:
    Path("x.yaml").write_text(text)
    assert told("x.yaml") == message


def test_a_file_that_cannot_be_read(here: Path) -> None:
    hint = "Give the path of a YAML file"
    assert told("nope.yaml") == f"config 'nope.yaml' cannot be read: No such file or directory. {hint}"
    assert told(".") == f"config '.' cannot be read: Is a directory. {hint}"
    Path("x.yaml").write_bytes(b"dataset: \xff\xfe")
    assert told("x.yaml") == f"config 'x.yaml' is no text in UTF-8. {hint}"


def test_an_override_is_not_blamed_on_the_file() -> None:
    with pytest.raises(InputError) as caught:
        read(EvaluationConfig, config(), ["threat.epsilon=8"])
    assert str(caught.value) == (
        "epsilon is 8, more than the whole pixel range (x.yaml and the command line, threat); did you mean 8/255?"
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import nothing_like_this\n",
            "plugin file 'mine.py' did not load: ModuleNotFoundError: No module named 'nothing_like_this'. "
            "Mend the file",
        ),
        (
            "from guard import hookimpl\n@hookimpl\ndef guard_attacks():\n    return [3]\n",
            "plugin 'mine' (mine.py) returns 3 from guard_attacks(), which is no Attack class. Return [MyClass]",
        ),
        (
            "from guard import hookimpl\n@hookimpl\ndef guard_attack():\n    return []\n",
            "plugin 'mine' (mine.py) implements 'guard_attack', which is no hook. Did you mean 'guard_attacks'?",
        ),
    ],
)
def test_a_plugin_file(code: str, message: str) -> None:
    Path("mine.py").write_text(code)
    assert told(config(plugins="[mine.py]"), PluginError) == message


def test_a_plugin_file_that_is_not_there() -> None:
    assert told(config(plugins="[mine.py]"), PluginError) == (
        "plugin file 'mine.py' cannot be read: No such file or directory. Give the path of a .py file"
    )
