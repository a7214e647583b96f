"""Options that several commands take."""

from typing import Annotated

import typer

Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="FILE", help="Load a plugin file; may be repeated.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
