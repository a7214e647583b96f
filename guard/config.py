"""EvaluationConfig: everything that decides an evaluation, validated."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from guard.attack import Attack
from guard.component import Lookup, Parameters
from guard.defense import Stack, stack
from guard.errors import InputError
from guard.source import DatasetSource, ModelSource
from guard.threat import ThreatModel
from guard.wording import explain

T = TypeVar("T")


class Part(Parameters):
    """Base of a config's sections."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)


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
    weight_decay: NonNegativeFloat = 5e-4
    """Decay of the weights."""
    schedule: Literal["cyclic", "constant"] = "cyclic"
    """cyclic: up to `lr` over the first 40 % of the updates, then down to 0."""
    start: Literal["weights", "scratch"] = Field(default="weights", alias="from")
    """Where weights are given: fine-tune a copy of them, or train from scratch."""


class Targets(Part):
    """A targeted goal."""

    targets: Literal["least-likely", "random", "next"] | NonNegativeInt = Field(examples=["least-likely"])
    """The class to reach: the least likely one, a random other, the label's successor, or a class number."""

    def __str__(self) -> str:
        return f"targeted: {self.targets}"


def _resolve(kind: str, value: Any, info: ValidationInfo) -> Any:
    """A component from whatever names or describes one, through the registry where one is at hand."""
    if info.context is None:
        return value
    lookup: Lookup = info.context["lookup"]
    return lookup(kind, value)


Model = Annotated[ModelSource, BeforeValidator(partial(_resolve, "model"))]


class Transfer(Part):
    """Knowledge of another model only: the attack is crafted on it."""

    transfer: Model = Field(examples=["small-cnn"])
    """The source model."""

    def __str__(self) -> str:
        return "transfer"


Precision = Literal["float32", "float64", "bf16"]
GoalSetting = Literal["untargeted"] | Targets
Knowledge = Literal["adaptive", "oblivious"] | Transfer


class Labelled(Part):
    """Base of what is listed under a label of its own: `as:` where given, else a name, numbered where it repeats."""

    label: str = ""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any, info: ValidationInfo) -> Any:
        if isinstance(data, Labelled) or (isinstance(data, Mapping) and "label" in data):
            return data
        label = ""
        if isinstance(data, Mapping) and "as" in data:
            label, data = data["as"], {key: value for key, value in data.items() if key != "as"}
            if not isinstance(label, str) or not label.strip() or {"/", "\\", "\n"} & set(label):
                raise ValueError(f"as is {label!r}; it must be a short text without slashes, for files are named by it")
        return {"label": label} | cls._content(data, info)

    @classmethod
    def _content(cls, data: Any, info: ValidationInfo) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def default_label(self) -> str:
        """The label where no `as:` gives one and no other entry has it."""
        raise NotImplementedError

    def _labelled(self, spec: dict[str, Any]) -> dict[str, Any]:
        return spec if self.label == self.default_label else spec | {"as": self.label}


class Entry(Labelled):
    """One of the attacks to run."""

    attack: Attack

    @classmethod
    def _content(cls, data: Any, info: ValidationInfo) -> dict[str, Any]:
        return {"attack": _resolve("attack", data, info)}

    @property
    def default_label(self) -> str:
        """The attack's name."""
        return self.attack.name or type(self.attack).__name__

    @model_serializer
    def _serialise(self) -> dict[str, Any]:
        return self._labelled(self.attack.model_dump(mode="json"))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"component": "attack", "labelled": True}


class DefenseEntry(Labelled):
    """One of the stacks of defenses to evaluate; an empty one is no defense."""

    stack: Stack = Stack()

    @classmethod
    def _content(cls, data: Any, info: ValidationInfo) -> dict[str, Any]:
        if not isinstance(data, list | tuple):
            return {"stack": stack(_resolve("defense", data, info))}
        if not data:
            raise ValueError("a stack is empty; write none for no defense")
        return {"stack": stack([_resolve("defense", part, info) for part in data])}

    @property
    def default_label(self) -> str:
        """The members' names, or none."""
        return self.stack.label

    @model_serializer
    def _serialise(self) -> dict[str, Any] | list[Any] | str:
        members = [member.model_dump(mode="json") for member in self.stack.members]
        if len(members) > 1:
            return members
        if not members and self.label == "none":
            return "none"
        return self._labelled(members[0] if members else {"name": "none"})

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        single, part = {"component": "defense", "labelled": True}, {"component": "defense"}
        return {"anyOf": [single, {"type": "array", "items": part, "minItems": 1}]}


L = TypeVar("L", bound=Labelled)


def _numbered(entries: Sequence[L]) -> tuple[L, ...]:
    """Every entry under a label of its own. Raises ValueError where two are given the same one."""
    labels: list[str] = []
    for entry in entries:
        label, repeat = entry.label or entry.default_label, 1
        if entry.label in labels:
            raise ValueError(f"two entries are labelled '{label}'; give each its own as: LABEL")
        while label in labels:
            repeat += 1
            label = f"{entry.default_label}#{repeat}"
        labels.append(label)
    return tuple(entry.model_copy(update={"label": label}) for entry, label in zip(entries, labels, strict=True))


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{value} is listed twice; list it once")
    return values


class _OneOrMore:
    """A list, which may be written without its brackets where it holds one thing."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._listed, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}

    @staticmethod
    def _listed(value: Any) -> Any:
        return value if isinstance(value, list | tuple) or value is None else [value]


Some = Annotated[tuple[T, ...], Field(min_length=1), _OneOrMore()]
Several = Annotated[Some[T], AfterValidator(_distinct)]


def _threat(threat: ThreatModel) -> dict[str, Any]:
    """JSON has no infinity."""
    return {"norm": threat.norm, "epsilon": "inf" if threat.epsilon == float("inf") else threat.epsilon}


class EvaluationConfig(Part):
    """An evaluation: which attacks meet which defenses of which model, on which images, under which threat.

    Paths in it are relative to the working directory, but for `plugins` of a config file, which are relative to it.
    """

    dataset: Annotated[DatasetSource, BeforeValidator(partial(_resolve, "dataset"))] = Field(examples=["digits"])
    """The images: a name, or {name: ..., key: value}."""
    model: Some[Model] = Field(examples=["small-cnn"])
    """One model or a list: a name, {name: ..., weights: ...}, or path/to/file.py:function."""
    threat: Several[Annotated[ThreatModel, PlainSerializer(_threat)]] = Field(
        examples=[{"norm": "linf", "epsilon": "8/255"}]
    )
    """{norm: linf, epsilon: 8/255}, or a list; each is its own table."""
    attacks: Annotated[Some[Entry], AfterValidator(_numbered)] = Field(examples=[["fgsm", "pgd"]])
    """Names, or {name: ..., key: value, as: label}."""
    defenses: Annotated[Some[DefenseEntry], AfterValidator(_numbered)] = (DefenseEntry(label="none"),)
    """Names or {name: ..., key: value, as: label}; an inner list is a stack, left to right."""
    knowledge: Several[Knowledge] = ("adaptive",)
    """adaptive, oblivious, or {transfer: MODEL}; one or a list."""
    goal: Several[GoalSetting] = ("untargeted",)
    """untargeted, or {targets: least-likely | random | next | CLASS}; one or a list."""
    training: Training = Training()
    """How what has no weights, and what a defense must train, is trained."""
    limit: PositiveInt | None = None
    """Evaluate so many images: the first ones, of a folder a sample with as many of each class; all where left out."""
    seed: Several[NonNegativeInt] = (0,)
    """One seed or a list."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    precision: Precision = "float32"
    """float64 makes results exactly independent of the batch size; with bf16 attacks that follow the sign of a gradient
    search in bfloat16, and each success is confirmed in float32."""
    max_queries: PositiveInt | None = None
    """How often an attack may ask about one image; no limit where left out."""
    batch_size: PositiveInt | None = None
    """Images per forward, at most 256; chosen by the device and the size of the model's layers where left out."""
    plugins: tuple[str, ...] = ()
    """Plugin files to load, relative to the config file."""

    @classmethod
    def of(cls, data: Mapping[str, Any], create: Callable[[str, Any], Any], where: str = "") -> Self:
        """Validate what a config says, with components made by a registry's `create`. Raises InputError.

        `where` is the file, for errors.
        """
        try:
            return cls.model_validate(data, context={"lookup": create})
        except ValidationError as error:
            raise InputError(explain(error, cls, where, data=data)) from error
