"""guard claim: check a sentence, and say what came out."""

from pathlib import Path
from typing import Annotated

import typer

from guard.cli.options import Debug, Plugins


def claim(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The claim, a YAML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the config: evaluate.limit=100; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the verdict and its evaluations there; nothing otherwise.")
    ] = None,
    plugin: Plugins = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the verdict.")] = False,
    debug: Debug = False,
) -> None:
    """Check a sentence that people believe: supported, contradicted, or undecided.

    What was computed before is not computed again. Exit code: 0 whatever comes out; 2 for bad input.
    """
    from rich.console import Console

    from guard import configfile
    from guard.claiming import perform_claim
    from guard.claims.config import ClaimConfig
    from guard.cli.relay import relay
    from guard.progress import Progress
    from guard.report.claim import show
    from guard.report.live import LiveProgress

    settings, registry = configfile.read(ClaimConfig, config, set_ or [], plugin or [])
    progress = Progress() if quiet else LiveProgress(Console(stderr=True))
    relay({found.__module__.split(".")[0] for found in registry.origins}, progress.say)
    verdict = perform_claim(settings, registry, out=out, progress=progress)
    if not quiet:
        show(verdict, Console())
        if out is not None:
            print(out / "index.html")
    print(verdict)
