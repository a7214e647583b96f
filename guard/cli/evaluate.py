"""guard evaluate: run a config and show what came out."""

from pathlib import Path
from typing import Annotated

import typer

from guard.cli.options import Debug, Plugins


def evaluate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The config, a YAML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the config: threat.epsilon=0.1; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the report goes; runs/NAME OF THE CONFIG by default.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    limit: Annotated[int | None, typer.Option(help="Evaluate so many images.")] = None,
    no_train: Annotated[bool, typer.Option("--no-train", help="Refuse to train anything.")] = False,
    keep_images: Annotated[bool, typer.Option("--keep-images", help="Keep the adversarial images.")] = False,
    plugin: Plugins = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but where the report is.")] = False,
    debug: Debug = False,
) -> int:
    """Run attacks against defenses and report robust accuracy.

    What was computed before is not computed again. Exit code: 0; 1 where a cell is INVALID; 2 for bad input.
    """
    from rich.console import Console

    from guard import configfile
    from guard.api import perform
    from guard.cli.relay import relay
    from guard.config import EvaluationConfig
    from guard.progress import Progress
    from guard.report.live import LiveProgress
    from guard.report.terminal import show

    overrides = [f"{key}={value}" for key, value in (("device", device), ("limit", limit)) if value is not None]
    settings, registry = configfile.read(EvaluationConfig, config, [*(set_ or []), *overrides], plugin or [])
    folder = out or Path("runs") / config.stem
    progress = Progress() if quiet else LiveProgress(Console(stderr=True))
    relay({found.__module__.split(".")[0] for found in registry.origins}, progress.say)
    report = perform(settings, registry, out=folder, keep_images=keep_images, no_train=no_train, progress=progress)
    if not quiet:
        show(report, Console())
    print(folder / "report.html")
    return int(any(cell.status == "INVALID" for cell in report.cells))
