"""guard list: what is installed."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from guard.cli.options import Debug, Plugins

if TYPE_CHECKING:
    from rich.table import Table

    from guard.registry import Registry


class What(StrEnum):
    """What can be listed."""

    attacks = "attacks"
    defenses = "defenses"
    models = "models"
    datasets = "datasets"
    plugins = "plugins"


def list_components(
    what: Annotated[What | None, typer.Argument(help="Only these; all components by default.")] = None,
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """List what is installed, and what did not load."""
    from rich.console import Console
    from rich.text import Text

    from guard.registry import Registry

    registry, console = Registry.load(plugin or []), Console()
    if what is What.plugins:
        console.print(_plugins(registry))
    else:
        kinds = [what.value] if what else [item.value for item in What if item is not What.plugins]
        for kind in kinds:
            console.print(_components(registry, kind))
    for name, reason in registry.failures.items():
        console.print(Text(f"plugin '{name}' did not load: {reason}", style="red"), soft_wrap=True)


def _components(registry: "Registry", kind: str) -> "Table":
    from rich.text import Text

    table = _table(kind.removesuffix("s"), "what it is", "plugin", "distribution")
    for name, item in sorted(registry.classes[kind.removesuffix("s")].items()):
        origin = registry.origin(item)
        sentence = " ".join((item.__doc__ or "").split("\n\n")[0].split()).split(". ")[0]
        table.add_row(*map(Text, (name, sentence, origin.plugin, origin.distribution)))
    return table


def _plugins(registry: "Registry") -> "Table":
    from rich.text import Text

    table = _table("plugin", "provides", "distribution")
    for name, origin in registry.plugins.items():
        provided = ", ".join(item.name for item in registry if registry.origin(item) == origin)
        table.add_row(*map(Text, (name, provided, origin.distribution)))
    return table


def _table(*headers: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(headers[0], no_wrap=True)
    table.add_column(headers[1], overflow="fold", min_width=30)
    for header in headers[2:]:
        table.add_column(header, overflow="fold")
    return table
