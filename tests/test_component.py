"""A component is its parameters: validated, frozen, printable, and back from what it serialises to."""

import pickle
from typing import Any, ClassVar

import pytest
from pydantic import PositiveInt, ValidationError
from torch import Tensor

from guard import Attack, Component, Defense, Goal, InputError, Registry, Rng, ThreatModel, Victim


class Toy(Attack):
    """A toy."""

    name: ClassVar[str] = "toy"

    steps: PositiveInt = 3
    """How many steps."""
    sizes: tuple[float, ...] = (0.1, 0.2)

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        return images


class Trainer(Defense):
    name: ClassVar[str] = "trainer"

    attack: Attack = Toy()


def test_parameters_are_validated_and_frozen() -> None:
    with pytest.raises(InputError) as caught:
        Toy(steps=0)
    assert str(caught.value) == "steps of attack 'toy' is 0; it must be above 0"
    with pytest.raises(InputError) as caught:
        Toy(step=4)  # type: ignore[call-arg]
    assert str(caught.value) == "attack 'toy' has no parameter 'step'. Did you mean 'steps'?"
    toy = Toy(steps=4)
    with pytest.raises(ValidationError, match="frozen"):
        toy.steps = 5  # type: ignore[misc]
    assert Toy(steps=4) == toy != Toy()
    assert hash(Toy(steps=4)) == hash(toy)


def test_it_serialises_with_its_name_also_inside_another() -> None:
    assert Trainer(attack=Toy(steps=4)).model_dump(mode="json") == {
        "name": "trainer",
        "attack": {"name": "toy", "steps": 4, "sizes": [0.1, 0.2]},
    }


def test_what_it_serialises_to_creates_it_again(registry: Registry) -> None:
    mine = Registry(classes={kind: dict(known) for kind, known in registry.classes.items()})
    mine.classes["attack"]["toy"], mine.classes["defense"]["trainer"] = Toy, Trainer
    trainer = Trainer(attack=Toy(sizes=(0.5,)))
    assert mine.create("defense", trainer.model_dump(mode="json")) == trainer
    for found in registry.classes["attack"].values():
        if found.name != "saved":
            assert registry.create("attack", found().model_dump(mode="json")) == found()


def test_it_can_be_pickled() -> None:
    trainer = Trainer(attack=Toy(steps=9))
    assert pickle.loads(pickle.dumps(trainer)) == trainer


@pytest.mark.parametrize("name", ["Toy", "my_attack", "-x", "a--b", "a b"])
def test_a_name_is_lower_case_words_joined_by_hyphens(name: str) -> None:
    with pytest.raises(TypeError, match="a name is lower-case words joined by hyphens"):
        type("Bad", (Toy,), {"name": name, "__module__": __name__, "__annotations__": {"name": ClassVar[str]}})


@pytest.mark.parametrize(
    "spec", ["pgd", {"name": "pgd", "steps": 7}, {"name": "mi-fgsm", "decay": 0.5}], ids=["name", "mapping", "other"]
)
def test_a_component_parameter_is_given_by_name_or_mapping(spec: Any, registry: Registry) -> None:
    trainer = Trainer.model_validate({"attack": spec}, context={"lookup": registry.create})
    assert trainer.attack == registry.create("attack", spec)


def test_a_misspelt_inner_name_is_reported_with_the_nearest(registry: Registry) -> None:
    with pytest.raises((InputError, ValidationError), match=r"no attack is named 'pdg'.* Did you mean 'pgd'\?"):
        Trainer.model_validate({"attack": "pdg"}, context={"lookup": registry.create})


def test_its_schema_documents_the_parameters_and_leaves_a_place_for_other_components() -> None:
    schema = Toy.model_json_schema()
    assert schema["properties"]["steps"]["description"] == "How many steps."
    assert schema["additionalProperties"] is False
    assert "$ref" in str(Trainer.model_json_schema()["properties"]["attack"])


def test_a_base_class_is_no_component_one_can_name() -> None:
    assert Component.name == Attack.name == ""
    assert (Toy.kind, Trainer.kind) == ("attack", "defense")
