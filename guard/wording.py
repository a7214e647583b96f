"""Turns pydantic's validation errors into guard's: what is wrong, whose it is, what to type instead."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import shorten
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from guard.errors import InputError, suggestion

_RULES = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "finite",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping {{key: value}}",
    "model_type": "a mapping {{key: value}}",
    "literal_error": "{expected}",
}
"""Ends of the sentence "it must be ..." by pydantic's error type."""

Path = tuple[str | int, ...]


def explain(error: ValidationError, model: type[BaseModel], where: str = "", *, data: object) -> str:
    """One line for what is wrong first in `data`, the parameters of a component or a config.

    `where` is the file, and in it the key, that they stand in. A validator's ValueError should name the value itself
    ("8/0 divides by zero; write 8/255"); an InputError is taken for a whole sentence.
    """
    errors = [(_path(item, data), item) for item in error.errors(include_url=False)]
    errors = [(path, item) for path, item in errors if item["type"] != "too_short" or not item["input"]]
    path, first = _first(errors)
    kind, name = getattr(model, "kind", ""), getattr(model, "name", "")
    component = bool(kind and name)
    owner = f"{kind} '{name}'" if component else ""
    whole = owner or ("the config" if model.__name__.endswith("Config") else model.__name__)
    fields = _fields(model, path[:-1])
    if first["type"] in ("extra_forbidden", "invalid_key"):
        known = [field.alias or name for name, field in fields.items()]
        text = f"{owner or _dotted(path[:-1]) or whole} has no {'parameter' if component else 'key'} '{path[-1]}'"
        return f"{text}{_at(where)}. {suggestion(str(path[-1]), known)}"
    if first["type"] == "missing":
        key = str(path[-1])
        text = f"{owner or _dotted(path[:-1]) or whole} lacks the {'parameter' if component else 'key'} '{key}'"
        return f"{text}{_at(where)}. Add {key}: {_example(fields.get(key))}"
    message = str(first.get("ctx", {}).get("error", ""))
    if _is_sentence(first):
        return message if component and not where else placed(message, where, _dotted(path))
    if message and isinstance(first["input"], Mapping | BaseModel | list | tuple):  # too long to be shown
        return placed(f"{owner}: {message}" if owner else message, where, _dotted(path))
    at = (where, _dotted(_parent(path)))
    subject = _dotted(path[len(_parent(path)) :]) + (f" of {owner}" if owner else "")
    if message and str(first["input"]) in message:
        return placed(f"{subject}: {message}", *at)
    if message:
        return placed(f"{subject} is {_shown(first['input'])}: {message}", *at)
    rules = dict.fromkeys(_rule(item) for other, item in errors if other == path)
    return f"{subject} is {_shown(first['input'])}{_at(*at)}; it must be {' or '.join(rules)}"


def placed(sentence: str, *where: str) -> str:
    """Say where behind the first clause of an error, unless it says so already."""
    at = _at(*where)
    if not at or f"({next(filter(None, where))}" in sentence:
        return sentence
    ends = [end for mark in ("; ", ". ") if (end := sentence.find(mark)) >= 0]
    end = min(ends, default=len(sentence))
    return f"{sentence[:end]}{at}{sentence[end:]}"


def _at(*where: str) -> str:
    text = ", ".join(filter(None, where))
    return f" ({text})" if text else ""


def _is_sentence(item: Any) -> bool:
    return isinstance(item.get("ctx", {}).get("error"), InputError)


def _first(errors: Sequence[tuple[Path, Any]]) -> tuple[Path, Any]:
    """The error to tell: a key that does not exist explains others; of a union's, the one that came furthest."""
    unknown = [item for item in errors if item[1]["type"] in ("extra_forbidden", "invalid_key")]
    if unknown:
        return unknown[0]
    head = errors[0][0][:1]
    return max((item for item in errors if item[0][:1] == head), key=lambda item: len(item[0]))


def _path(item: Any, data: object) -> Path:
    """The keys that lead to an error in `data`, without pydantic's marks for unions, functions and lists of one."""
    path: list[str | int] = []
    for part in item["loc"]:
        inside = range(len(data)) if isinstance(data, list | tuple) else data if isinstance(data, Mapping) else ()
        if part in inside:
            data = data[part]  # type: ignore[index]
            path.append(part)
        elif item["type"] == "missing" and part is item["loc"][-1]:
            path.append(part)
    return tuple(path)


def _parent(path: Path) -> Path:
    """The path of what holds the last named key."""
    names = [place for place, part in enumerate(path) if isinstance(part, str)]
    return path[: names[-1]] if names else ()


def _dotted(path: Path) -> str:
    """threat[1].epsilon."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _rule(item: Any) -> str:
    if item["type"] in _RULES:
        return _RULES[item["type"]].format(**item.get("ctx", {}))
    if item["type"] == "too_short":
        return "a list with something in it"
    return str(item["msg"]).removeprefix("Input should be ").removeprefix("Value should be ")


def _shown(value: object) -> str:
    return "empty" if value is None else shorten(repr(value), 80, placeholder=" ...")


def _example(field: FieldInfo | None) -> str:
    """What a config could say under a key, as YAML."""
    examples = field.examples if field is not None else None
    return str(examples[0]).replace("'", "") if examples else "..."


def _fields(model: type[BaseModel], path: Path) -> dict[str, FieldInfo]:
    """The fields of what stands at a path."""
    for part in path:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if isinstance(part, str) and part in fields:
            model = next(_models(fields[part].annotation), model)
    return model.model_fields


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """The classes with fields that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
