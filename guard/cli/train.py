"""guard train: train what a config says, and show how it went."""

from pathlib import Path
from typing import Annotated

import typer

from guard.cli.options import Debug, Plugins


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The config, a YAML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the config: training.epochs=3; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the weights go; runs/NAME OF THE CONFIG by default.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Only go on with a training that was stopped; else it begins or goes on.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do one batch of everything, and say how long the whole takes.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Train on so many devices at once.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="On so many machines, each started by torchrun.")] = 1,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves for TensorBoard, too.")] = False,
    plugin: Plugins = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but where the weights are.")] = False,
    debug: Debug = False,
) -> int:
    """Train a model under a defense, with robust validation after each epoch.

    The same command goes on where a killed one stopped. Exit code: 0; 1 where training
    failed, or overfitted catastrophically in every epoch; 2 for bad input.
    """
    import tempfile

    from rich.console import Console

    from guard import configfile
    from guard.api import perform_training
    from guard.cli.relay import relay
    from guard.errors import InputError
    from guard.progress import Progress
    from guard.report.live import LiveProgress
    from guard.report.training_terminal import show
    from guard.training.fabric import first
    from guard.training.run import read_record
    from guard.trainingconfig import TrainingConfig

    overrides = [] if device is None else [f"device={device}"]
    settings, registry = configfile.read(TrainingConfig, config, [*(set_ or []), *overrides], plugin or [])
    folder = out or Path("runs") / config.stem
    if resume and read_record(folder) is None:
        raise InputError(f"'{folder}' holds no training that was stopped. Leave --resume out to begin one")
    progress = Progress() if quiet or not first() else LiveProgress(Console(stderr=True))
    relay({found.__module__.split(".")[0] for found in registry.origins}, progress.say)
    if dry_run:
        with tempfile.TemporaryDirectory() as place:
            perform_training(settings, Path(place), devices=devices, nodes=nodes, dry=True, progress=progress)
        return 0
    record = perform_training(
        settings, folder, devices=devices, nodes=nodes, tensorboard=tensorboard, progress=progress
    )
    if first():
        if not quiet:
            show(record, Console())
        print(folder / "training.html")
    return int(record.kept is None)
