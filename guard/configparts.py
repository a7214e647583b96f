"""What the sections of a config share: components by name, one or a list, entries under labels of their own."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

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


class Config(Part):
    """Base of a whole config."""

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


def resolve(kind: str, value: Any, info: ValidationInfo) -> Any:
    """A component from whatever names or describes one, through the registry where one is at hand."""
    if info.context is None:
        return value
    lookup: Lookup = info.context["lookup"]
    return lookup(kind, value)


Model = Annotated[ModelSource, BeforeValidator(partial(resolve, "model"))]


Dataset = Annotated[DatasetSource, BeforeValidator(partial(resolve, "dataset"))]


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
        return spec if self.label in ("", self.default_label) else spec | {"as": self.label}


class DefenseEntry(Labelled):
    """One of the stacks of defenses to evaluate; an empty one is no defense."""

    stack: Stack = Stack()

    @classmethod
    def _content(cls, data: Any, info: ValidationInfo) -> dict[str, Any]:
        if not isinstance(data, list | tuple):
            return {"stack": stack(resolve("defense", data, info))}
        if not data:
            raise ValueError("a stack is empty; write none for no defense")
        return {"stack": stack([resolve("defense", part, info) for part in data])}

    @property
    def default_label(self) -> str:
        """The members' names, or none."""
        return self.stack.label

    @model_serializer
    def _serialise(self) -> dict[str, Any] | list[Any] | str:
        members = [member.model_dump(mode="json") for member in self.stack.members]
        if len(members) > 1:
            return members
        if not members and self.label in ("", "none"):
            return "none"
        return self._labelled(members[0] if members else {"name": "none"})

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        single, part = {"component": "defense", "labelled": True}, {"component": "defense"}
        return {"anyOf": [single, {"type": "array", "items": part, "minItems": 1}]}


L = TypeVar("L", bound=Labelled)


def numbered(entries: Sequence[L]) -> tuple[L, ...]:
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


def distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    """All of them, each once. Raises ValueError where one is listed twice."""
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
Several = Annotated[Some[T], AfterValidator(distinct)]


def _threat(threat: ThreatModel) -> dict[str, Any]:
    """JSON has no infinity."""
    return {"norm": threat.norm, "epsilon": "inf" if threat.epsilon == float("inf") else threat.epsilon}


Threat = Annotated[ThreatModel, PlainSerializer(_threat)]
