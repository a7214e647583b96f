"""Component: one class that is its parameters."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema

from guard.errors import InputError
from guard.wording import explain

_KEBAB = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

Lookup = Callable[[str, object], "Component"]
"""Turns (kind, name or mapping) into a component; the registry's, handed over in the validation context."""


if TYPE_CHECKING:
    _Base = BaseModel  # a metaclass of one's own would hide the constructor's parameters from type checkers
else:

    class _OneLine(type(BaseModel)):
        """Constructors whose errors are one line."""

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if args:
                fields = ", ".join(f"{name}=..." for name in cls.model_fields)
                raise InputError(f"{cls.__name__} takes its parameters by name: {cls.__name__}({fields})")
            try:
                return super().__call__(**kwargs)
            except ValidationError as error:
                raise InputError(explain(error, cls, data=kwargs)) from error

    class _Base(BaseModel, metaclass=_OneLine):
        """Base of `Parameters` while it runs."""


class Parameters(_Base):
    """Validated, frozen fields and no others. True and False are no numbers (pydantic takes them for 1 and 0)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        truths = [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, bool)]
        if truths:
            wanted = list(_mentioned(cls.model_fields[str(info.field_name)].annotation))
            if (int in wanted or float in wanted) and bool not in wanted:
                raise ValueError(f"{truths[0]} is no number; write a number")
        return value


def _mentioned(annotation: object) -> Iterator[object]:
    yield annotation
    for part in get_args(annotation):
        yield from _mentioned(part)


class Component(Parameters):
    """An attack, defense, model source or dataset source: a frozen set of validated parameters with a name.

    A parameter is an annotated attribute with a default; the string below it is its documentation:

        steps: PositiveInt = 10
        \"\"\"Number of gradient steps.\"\"\"
    """

    kind: ClassVar[str] = "component"
    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.name and not _KEBAB.fullmatch(cls.name):
            raise TypeError(f"{cls.__name__}.name is {cls.name!r}; a name is lower-case words joined by hyphens")

    def fingerprint(self) -> str:
        """What decides this component's result beside its parameters and its source, such as a file's content."""
        return ""

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Accept a name or a mapping with a name where a component is asked for."""
        if isinstance(data, Mapping) and data.get("name", "") == cls.name != "":
            return handler({key: value for key, value in data.items() if key != "name"})
        named = isinstance(data, str) or (isinstance(data, Mapping) and "name" in data)
        if named and info.context and "lookup" in info.context:
            lookup: Lookup = info.context["lookup"]
            data = lookup(cls.kind, data)
        return handler(data)

    @model_serializer(mode="plain")
    def _serialise(self) -> dict[str, Any]:
        return {"name": type(self).name} | {field: getattr(self, field) for field in type(self).model_fields}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A base class stands for whatever is installed: a placeholder that the registry fills in."""
        return handler(schema) if cls.name else {"component": cls.kind}
