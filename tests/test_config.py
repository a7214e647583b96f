"""The config: labels, what may be left out of brackets, and that what it dumps reads back to the same."""

import json
from typing import Any

import pytest

from guard import Attack, Goal, InputError, Registry, Rng, Stack, ThreatModel, Victim
from guard.config import DefenseEntry, EvaluationConfig, Targets, Training, Transfer
from guard.live import LiveModel

BASE = {"dataset": "digits", "model": "small-cnn", "threat": {"norm": "linf", "epsilon": "8/255"}, "attacks": "fgsm"}


class Mine(Attack):
    """Unregistered."""

    name = "mine"

    def perturb(self, victim: Victim, images: Any, goal: Goal, threat: ThreatModel, rng: Rng) -> Any:
        return images


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def read(registry: Registry, **keys: Any) -> EvaluationConfig:
    return EvaluationConfig.of(BASE | keys, registry.create)


def test_what_is_left_out_has_its_default(registry: Registry) -> None:
    config = read(registry)
    assert [entry.label for entry in config.defenses] == ["none"]
    assert config.defenses[0].stack == Stack()
    assert (config.knowledge, config.goal, config.seed, config.limit) == (("adaptive",), ("untargeted",), (0,), None)
    assert config.threat == (ThreatModel(norm="linf", epsilon=8 / 255),)
    assert config.training == Training()


def test_attacks_that_repeat_are_numbered_and_as_is_kept(registry: Registry) -> None:
    config = read(registry, attacks=["pgd", "fgsm", {"name": "pgd", "steps": 3}, {"name": "pgd", "as": "long"}, "pgd"])
    assert [entry.label for entry in config.attacks] == ["pgd", "fgsm", "pgd#2", "long", "pgd#3"]
    assert config.attacks[2].attack.model_dump()["steps"] == 3


def test_a_number_steps_over_a_label_that_a_user_took(registry: Registry) -> None:
    config = read(registry, attacks=[{"name": "fgsm", "as": "pgd#2"}, "pgd", "pgd"])
    assert [entry.label for entry in config.attacks] == ["pgd#2", "pgd", "pgd#3"]


def test_stacks_have_labels_too(registry: Registry) -> None:
    stacks = ["none", "bit-depth", {"name": "bit-depth", "bits": 2}, ["median", "bit-depth"], ["none", "median"]]
    config = read(registry, defenses=[*stacks, {"name": "bit-depth", "bits": 1, "as": "one bit"}, "none"])
    assert [entry.label for entry in config.defenses] == [
        "none",
        "bit-depth",
        "bit-depth#2",
        "median + bit-depth",
        "median",
        "one bit",
        "none#2",
    ]
    assert [member.name for member in config.defenses[3].stack.members] == ["median", "bit-depth"]


def test_instances_classes_names_and_mappings_mix(registry: Registry) -> None:
    median = registry.create("defense", "median")
    live = LiveModel(label="mine")
    attacks = [Mine(), Mine, "fgsm", {"name": "pgd"}]
    config = read(registry, attacks=attacks, defenses=[median, Stack(members=(median,))], model=live)
    assert [entry.label for entry in config.attacks] == ["mine", "mine#2", "fgsm", "pgd"]
    assert [entry.label for entry in config.defenses] == ["median", "median#2"]
    assert config.model == (live,)


def test_goals_knowledge_and_seeds(registry: Registry) -> None:
    source = {"name": "small-cnn", "mean": [0.5]}
    config = read(registry, goal=["untargeted", {"targets": 3}], knowledge={"transfer": source}, seed=[1, 2])
    assert config.goal == ("untargeted", Targets(targets=3))
    assert str(config.goal[1]) == "targeted: 3"
    (transfer,) = config.knowledge
    assert isinstance(transfer, Transfer)
    assert transfer.transfer == registry.create("model", source)
    assert config.seed == (1, 2)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"attacks": ["pgd", {"name": "pgd", "as": "x"}, "pgd", {"name": "fgsm", "as": "pgd#4"}]},
        {"defenses": ["none", "bit-depth", {"name": "bit-depth", "bits": 2}, {"name": "none", "as": "plain"}]},
        {"defenses": [["median", "bit-depth"], ["bit-depth", "median"], ["median", "bit-depth"]]},
        {"threat": [{"norm": "l2", "epsilon": "inf"}, {"norm": "linf", "epsilon": "1/3"}]},
        {"goal": [{"targets": "random"}, {"targets": 0}], "knowledge": ["oblivious", {"transfer": "small-cnn"}]},
        {"training": {"from": "scratch", "lr": "1e-3"}, "limit": 5, "model": ["small-cnn", "small-cnn"]},
    ],
    ids=str,
)
def test_a_dumped_config_reads_back_to_an_equal_one(keys: dict[str, Any], registry: Registry) -> None:
    config = read(registry, **keys)
    dumped = json.loads(json.dumps(config.model_dump(mode="json", by_alias=True), allow_nan=False))
    assert EvaluationConfig.of(dumped, registry.create) == config


def test_stacks_dump_as_short_as_they_can(registry: Registry) -> None:
    config = read(registry, defenses=["none", {"name": "bit-depth", "bits": 2}, ["median", "bit-depth"]])
    assert config.model_dump(mode="json", by_alias=True)["defenses"] == [
        "none",
        {"name": "bit-depth", "bits": 2},
        [{"name": "median", "kernel_size": 3}, {"name": "bit-depth", "bits": 3}],
    ]
    assert DefenseEntry(label="plain").model_dump() == {"name": "none", "as": "plain"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"attacks": ["fgsm", {"name": "pgd", "as": "fgsm"}]},
            "two entries are labelled 'fgsm' (attacks); give each its own as: LABEL",
        ),
        (
            {"attacks": [{"name": "pgd", "as": "a/b"}]},
            "as is 'a/b' (attacks[0]); it must be a short text without slashes, for files are named by it",
        ),
        ({"attacks": []}, "attacks is []; it must be a list with something in it"),
        ({"attacks": None}, "attacks is empty; it must be a list"),
        ({"model": []}, "model is []; it must be a list with something in it"),
        ({"defenses": ["none", []]}, "a stack is empty (defenses[1]); write none for no defense"),
        ({"seed": [0, 1, 0]}, "0 is listed twice (seed); list it once"),
        ({"threat": [{"norm": "l2", "epsilon": 1}] * 2}, "l2 1 is listed twice (threat); list it once"),
        ({"seed": [0, -1]}, "seed[1] is -1; it must be at least 0"),
        ({"seed": True}, "seed: True is no number; write a number"),
        ({"seed": [0, True]}, "True is no number (seed); write a number"),
        ({"limit": 0}, "limit is 0; it must be above 0"),
        ({"limit": True}, "limit: True is no number; write a number"),
        ({"device": 3}, "device is 3; it must be text"),
        ({"goal": "targeted"}, "goal is 'targeted'; it must be 'untargeted' or a mapping {key: value}"),
        ({"goal": {"target": 1}}, "goal has no key 'target'. Did you mean 'targets'?"),
        (
            {"goal": {"targets": "nexxt"}},
            "targets is 'nexxt' (goal); it must be 'least-likely', 'random' or 'next' or a whole number",
        ),
        (
            {"knowledge": ["adaptive", "oblivous"]},
            "knowledge[1] is 'oblivous'; it must be 'adaptive' or 'oblivious' or a mapping {key: value}",
        ),
        (
            {"knowledge": {"transfer": {"name": "small-cnn", "wieghts": "x"}}},
            "model 'small-cnn' has no parameter 'wieghts' (knowledge.transfer). Did you mean 'weights'?",
        ),
        ({"training": {"epoch": 3}}, "training has no key 'epoch'. Did you mean 'epochs'?"),
        ({"training": {"epochs": 0}}, "epochs is 0 (training); it must be above 0"),
        ({"training": {"optimizer": "adam"}}, "optimizer is 'adam' (training); it must be 'sgd' or 'adamw'"),
        ({"training": {"from": "zero"}}, "from is 'zero' (training); it must be 'weights' or 'scratch'"),
        ({"training": 3}, "training is 3; it must be a mapping {key: value}"),
        ({"precision": "half"}, "precision is 'half'; it must be 'float32', 'float64' or 'bf16'"),
        (
            {"model": {"name": "small-cnn", "std": [0]}},
            "std[0] of model 'small-cnn': 0 is not above 0 (model); write 8/255 or 0.3",
        ),
        ({"threat": "linf"}, "threat is 'linf'; it must be a mapping {key: value}"),
        (
            {"threat": [{"norm": "l2", "epsilon": 1}, {"norm": "l3", "epsilon": 1}]},
            "norm is 'l3' (threat[1]); it must be 'linf', 'l2' or 'l1'",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(keys: dict[str, Any], message: str, registry: Registry) -> None:
    with pytest.raises(InputError) as caught:
        read(registry, **keys)
    assert str(caught.value) == message
