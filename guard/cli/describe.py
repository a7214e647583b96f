"""guard describe: one component, its parameters and where it comes from."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.options import Debug, Plugins

if TYPE_CHECKING:
    from guard.attack import Attack
    from guard.component import Component
    from guard.registry import Registry

_CLASSES = 10  # of the data set that a cost is told for


def describe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An attack, a defense, a model or a data set.")],
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Show a component's parameters and origin."""
    from guard.errors import UnknownName, suggestion
    from guard.registry import Registry

    registry = Registry.load(plugin or [])
    found = [item for item in registry if item.name == name.split(":")[0]]
    if not found:
        lost = f" (plugins that did not load: {', '.join(registry.failures)})" if registry.failures else ""
        hint = suggestion(name, {item.name for item in registry})
        raise UnknownName(f"no attack, defense, model or dataset is named '{name}'. {hint}{lost}")
    for item in found:
        _show(item, registry)


def _show(item: "type[Component]", registry: "Registry") -> None:
    from inspect import cleandoc

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    paragraphs = [
        part if part.startswith(" ") else " ".join(part.split())  # what is indented is a table
        for part in cleandoc(item.__doc__ or "").split("\n\n")
    ]
    console.print(Text(f"{item.kind} {item.name}", style="bold"))
    for part in paragraphs:
        console.print(Text(f"{part}\n"), soft_wrap=part.startswith(" "))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("parameter", no_wrap=True)
    for header in ("type", "default", "what it does"):
        table.add_column(header, overflow="fold")
    schema = item.model_json_schema()
    for key, part in schema.get("properties", {}).items():
        table.add_row(*map(Text, (key, _type(part, schema), _default(part), part.get("description", ""))))
    if table.row_count:
        console.print(table)
    for label, value in _facts(item, registry).items():
        console.print(Text(f"{label}: {value}"), soft_wrap=True)


def _facts(item: "type[Component]", registry: "Registry") -> dict[str, str]:
    """What holds of the class, whatever its parameters; its cost with those it has by default."""
    from guard.attack import Attack

    facts = {}
    for key in ("access", "norms", "differentiable", "randomized"):
        value = getattr(item, key, None)
        if item.kind in ("attack", "defense") and value is not None:
            facts[key] = _fact(value)
    if issubclass(item, Attack):
        facts["cost"] = _cost(item)
    origin = registry.origin(item)
    return facts | ({"paper": item.paper} if item.paper else {}) | {"plugin": str(origin)}


def _cost(item: "type[Attack]") -> str:
    """The most that an attack asks for, in words."""
    from guard.errors import InputError

    try:
        cost = item().cost(_CLASSES)
    except InputError:  # a parameter has no default
        return "depends on its parameters"
    if cost is None:
        return "not stated"
    asked = " and ".join(
        f"{number:,} {name}{'s' * (number != 1)}" for number, name in zip(cost, ("forward", "backward"), strict=True)
    )
    return f"at most {asked} an image ({_CLASSES} classes)"


def _fact(value: object) -> str:
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else "depends on its parameters"


def _default(part: dict[str, Any]) -> str:
    if "default" not in part:
        return "required"
    return part["default"] if isinstance(part["default"], str) else json.dumps(part["default"])


def _type(part: dict[str, Any], schema: dict[str, Any]) -> str:
    """A parameter's type in words."""
    if "$ref" in part:
        return _type(schema["$defs"][part["$ref"].rsplit("/", 1)[-1]], schema)
    if "component" in part:
        return str(part["component"])
    if "anyOf" in part:
        return " or ".join(_type(choice, schema) for choice in part["anyOf"])
    if "enum" in part or "const" in part:
        return " | ".join(str(value) for value in part.get("enum", [part.get("const")]))
    if part.get("type") == "array":
        return f"list of {_type(part['items'], schema)}" if "items" in part else "list"
    words = {"integer": "whole number", "string": "text", "boolean": "true | false", "null": "nothing"}
    bounds = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "up to"}
    limits = [f"{word} {part[key]:g}" for key, word in bounds.items() if key in part]
    kind = str(part.get("type", "anything"))
    return " ".join([words.get(kind, kind), *limits])
