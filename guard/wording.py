"""Turns pydantic's validation errors into guard's: what is wrong, whose it is, what to type instead."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from guard.component import Component
from guard.errors import suggestion


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> str:
    """One line for the first thing that is wrong in the parameters of a component or a config."""
    first = error.errors(include_url=False)[0]
    path = [part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    at = f" ({where})" if where else ""
    if issubclass(model, Component) and model.name:
        owner, noun = f"{model.kind} '{model.name}'", "parameter"
    else:
        owner, noun = "the config", "key"
    if first["type"] == "extra_forbidden":
        return f"{owner} has no {noun} '{path[-1]}'{at}. {suggestion(str(path[-1]), _known(model, path))}"
    key = ".".join(str(part) for part in path)
    if first["type"] == "missing":
        return f"{owner} lacks the {noun} '{key}'{at}. Add {key}: ..."
    if first["type"] == "value_error" and not key:
        return f"{owner}: {_message(first)}{at}"
    return f"{owner}: {key} is {first['input']!r}{at}. {_message(first)}"


def _message(error: Any) -> str:
    text = str(error["ctx"]["error"]) if error["type"] == "value_error" else str(error["msg"])
    return text[0].upper() + text[1:] if error["type"] != "value_error" else text


def _known(model: type[BaseModel], path: Iterable[Any]) -> list[str]:
    """The keys that are allowed where the path ends."""
    current: Any = model
    for part in list(path)[:-1]:
        field = current.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            continue
        inner = [t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(t)]
        current = inner[0] if inner else current
    return [info.alias or name for name, info in current.model_fields.items()]


def _is_model(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, BaseModel)
