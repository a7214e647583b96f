"""EvaluationConfig: everything that decides an evaluation, validated."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from guard.attack import Attack
from guard.defense import Defense, Stack, stack
from guard.errors import InputError
from guard.source import DatasetSource, ModelSource
from guard.threat import ThreatModel


class Part(BaseModel):
    """Base of a config's sections."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_by_name=True, validate_by_alias=True
    )


class Training(Part):
    """How what must be trained is trained."""

    epochs: PositiveInt = 30
    """Passes over the training split."""
    batch_size: PositiveInt = 128
    """Images per weight update."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has momentum 0.9 (Nesterov)."""
    lr: PositiveFloat = 0.1
    """The largest learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Decay of the weights."""
    schedule: Literal["cyclic", "constant"] = "cyclic"
    """cyclic: up to `lr` over the first 40 % of the updates, then down to 0."""
    start: Literal["weights", "scratch"] = Field(default="weights", alias="from")
    """Where weights are given: fine-tune a copy of them, or train from scratch."""


class Targets(Part):
    """A targeted goal."""

    targets: Literal["least-likely", "random", "next"] | NonNegativeInt
    """The class to reach: the least likely one, a random other, the label's successor, or a class number."""

    def __str__(self) -> str:
        return f"targeted: {self.targets}"


class Transfer(Part):
    """Knowledge of another model only: the attack is crafted on it."""

    transfer: ModelSource
    """The source model."""

    def __str__(self) -> str:
        return "transfer"


GoalSetting = Literal["untargeted"] | Targets
Knowledge = Literal["adaptive", "oblivious"] | Transfer


class Entry(Part):
    """One of the attacks to run, under a label of its own."""

    label: str
    attack: Attack

    @model_serializer
    def _serialise(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.attack.model_dump(mode="json")
        return spec if self.label == self.attack.name else spec | {"as": self.label}


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class EvaluationConfig(Part):
    """An evaluation: which attacks meet which defenses of which model, on which images, under which threat."""

    dataset: DatasetSource
    """The images: a name, or {name: ..., key: value}."""
    model: Annotated[tuple[ModelSource, ...], BeforeValidator(_listed)]
    """One model or a list: a name, {name: ..., weights: ...}, or path/to/file.py:function."""
    threat: Annotated[tuple[ThreatModel, ...], BeforeValidator(_listed)]
    """{norm: linf, epsilon: 8/255}, or a list; each is its own table."""
    attacks: tuple[Entry, ...]
    """Names, or {name: ..., key: value, as: label}."""
    defenses: tuple[Stack, ...] = (Stack(),)
    """Names or {name: ..., key: value}; an inner list is a stack, left to right."""
    knowledge: Annotated[tuple[Knowledge, ...], BeforeValidator(_listed)] = ("adaptive",)
    """adaptive, oblivious, or {transfer: MODEL}; one or a list."""
    goal: Annotated[tuple[GoalSetting, ...], BeforeValidator(_listed)] = ("untargeted",)
    """untargeted, or {targets: least-likely | random | next | CLASS}; one or a list."""
    training: Training = Training()
    """How what has no weights, and what a defense must train, is trained."""
    limit: PositiveInt | None = None
    """Evaluate the first so many images; all where left out."""
    seed: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_listed)] = (0,)
    """One seed or a list."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["float32", "float64"] = "float32"
    """float64 makes results exactly independent of the batch size."""
    batch_size: PositiveInt | None = None
    """Images per forward; found by the device where left out."""
    plugins: tuple[str, ...] = ()
    """Plugin files to load, relative to the config."""

    @field_validator("attacks", mode="before")
    @classmethod
    def _label(cls, value: Any, info: ValidationInfo) -> Any:
        """Take `as:` off each attack, and number labels that repeat."""
        entries: list[dict[str, Any]] = []
        taken: set[str] = set()
        for number, item in enumerate(_listed(value)):
            if isinstance(item, Entry):
                entries.append({"label": item.label, "attack": item.attack})
                continue
            label = item.get("as") if isinstance(item, Mapping) else None
            spec = {key: part for key, part in item.items() if key != "as"} if isinstance(item, Mapping) else item
            attack = _create("attack", spec, info, f"attacks[{number}]")
            name = label or attack.name or type(attack).__name__
            unique, repeat = name, 1
            while unique in taken:
                if label:
                    raise ValueError(f"two attacks are labelled '{label}'; give each its own `as:`")
                repeat += 1
                unique = f"{name}#{repeat}"
            taken.add(unique)
            entries.append({"label": unique, "attack": attack})
        if not entries:
            raise ValueError("no attack is listed; write attacks: [fgsm, pgd]")
        return entries

    @field_validator("defenses", mode="before")
    @classmethod
    def _stacks(cls, value: Any, info: ValidationInfo) -> Any:
        def parts(item: Any, at: str) -> list[Defense]:
            return [_create("defense", part, info, at) for part in _listed(item)]

        return [stack(parts(item, f"defenses[{number}]")) for number, item in enumerate(_listed(value))]

    @field_validator("dataset", mode="before")
    @classmethod
    def _dataset(cls, value: Any, info: ValidationInfo) -> Any:
        return _create("dataset", value, info, "dataset")

    @field_validator("model", mode="after")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("no model is listed; write model: small-cnn")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [item.label for item in self.defenses]
        del names
        return self


def _create(kind: str, spec: Any, info: ValidationInfo, key: str) -> Any:
    """Through the registry, so that errors name the component and the place in the config."""
    context = info.context or {}
    file = context.get("file", "")
    where = f"{file}, {key}" if file else key
    if "lookup" not in context:
        raise InputError("a config is validated with a registry")
    return context["lookup"](kind, spec, where)
