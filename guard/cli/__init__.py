"""The command line: one file a command. Nothing heavy is imported before a command runs."""

import ctypes
import os
import sys
from typing import Annotated, NoReturn

import typer

import guard
from guard.cli.claim import claim
from guard.cli.describe import describe
from guard.cli.evaluate import evaluate
from guard.cli.list import list_components
from guard.cli.schema import print_schema
from guard.cli.train import train
from guard.errors import ContractError, GuardError

app = typer.Typer(
    name="guard",
    help="Evaluate defenses of image classifiers against adversarial examples.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(evaluate)
app.command()(claim)
app.command()(train)
app.command("list")(list_components)
app.command()(describe)
app.command("schema")(print_schema)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"guard {guard.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = (
        False
    ),
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line: exit code 2 for bad input, 1 for a run that failed, 130 for Ctrl-C, each with one line."""
    # before torch is imported: threads that spin for long while they wait make a busy machine many times slower
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # each size of a batch that shrinks has primitives of its own, which oneDNN would otherwise make again and again
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    keep_memory()
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = app(arguments, prog_name="guard", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if "--debug" in arguments:
            raise
        code, text = _told(error)
        print(text, file=sys.stderr)
    if code == 130:
        print("stopped; run the same command again to go on", file=sys.stderr)
    sys.exit(code)


def keep_memory() -> None:
    """Have glibc keep freed memory for the next step: given back and asked for anew, page faults take a fifth of it."""
    tune = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # others have none
    if tune is not None:
        trim_threshold, mmap_max = -1, -4
        tune(mmap_max, 0)
        tune(trim_threshold, 2**31 - 1)


def _told(error: Exception) -> tuple[int, str]:
    """The exit code of an error and its one line."""
    if isinstance(error, GuardError):
        return (1 if isinstance(error, ContractError) else 2), str(error)
    usage = getattr(error, "format_message", None)  # of typer's, whose class has another home in each of its versions
    if usage is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", "guard")
        return 2, f"{usage().rstrip('.')}. See {command} --help"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return 1, f"{text}. Add --debug to see where"
