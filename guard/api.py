"""The public functions: evaluate, train, fit, craft, load_run."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from guard.attack import Attack
from guard.building import answer
from guard.config import EvaluationConfig
from guard.errors import GuardError, InputError, NotApplicable
from guard.evaluation.crafting import applicable
from guard.evaluation.crafting import craft as craft_batch
from guard.evaluation.folder import claim, release
from guard.evaluation.images import check_images
from guard.evaluation.network import Network
from guard.evaluation.run import fit as fit_attack
from guard.evaluation.run import run
from guard.goal import Goal
from guard.inputs import Images, image_model, live_dataset, live_knowledge, live_model, live_training, name_of
from guard.learned import LearnedAttack
from guard.progress import Progress
from guard.registry import Registry
from guard.report.report import Report
from guard.report.training import csv, page
from guard.report.training_events import Events
from guard.report.training_terminal import line
from guard.source import ModelSource
from guard.threat import ThreatModel
from guard.training.lock import alone
from guard.training.record import Record
from guard.training.run import CONFIG, RECORD, read_record
from guard.training.run import run as run_training
from guard.trainingconfig import TrainingConfig


def evaluate(
    model: nn.Module | ModelSource | str | dict[str, Any] | Sequence[Any],
    dataset: Images,
    *,
    attacks: Sequence[Any],
    threat: ThreatModel | dict[str, Any] | Sequence[Any],
    defenses: Sequence[Any] = ("none",),
    train_data: tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any] | None = None,
    out: str | Path | None = None,
    keep_images: bool = False,
    no_train: bool = False,
    plugins: Iterable[str | Path] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Report:
    """Run attacks against defenses of a model and report robust accuracy.

    Names, mappings and instances mix: `attacks=["fgsm", {"name": "pgd", "steps": 40}, Mine(steps=3)]`. Images are
    float32 in [0, 1], shape (N, C, H, W), labels int64 (N,). `settings` are the config's other keys: knowledge, goal,
    training, limit, seed, device, precision, batch_size. With `out` the report is written there.

    Raises InputError for input that cannot be evaluated; an attack that fails is an INVALID cell of the report.
    """
    registry = Registry.load(plugins)
    keys = {
        "dataset": live_dataset(dataset, train_data, model),
        "model": [live_model(item) for item in model] if isinstance(model, list | tuple) else live_model(model),
        "attacks": attacks,
        "defenses": defenses,
        "threat": threat,
        "plugins": [str(file) for file in plugins],
    }
    if "knowledge" in settings:
        settings["knowledge"] = live_knowledge(settings["knowledge"])
    config = EvaluationConfig.of(keys | settings, registry.create)
    return perform(
        config,
        registry,
        out=None if out is None else Path(out),
        keep_images=keep_images,
        no_train=no_train,
        progress=progress,
    )


def perform(
    config: EvaluationConfig,
    registry: Registry,
    *,
    out: Path | None = None,
    keep_images: bool = False,
    no_train: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Evaluate a config that has been read, and write the report into `out`, which belongs to it from then on."""
    if out is not None:
        claim(out, config)
    try:
        results = run(config, registry, out=out, keep_images=keep_images, no_train=no_train, progress=progress)
    except GuardError:
        if out is not None:
            release(out)
        raise
    report = Report.of(results)
    if out is not None:
        report.save(out)
    return report


def train(
    model: nn.Module | ModelSource | str | dict[str, Any],
    dataset: Images,
    *,
    threat: ThreatModel | dict[str, Any],
    defense: Any = "none",
    out: str | Path,
    plugins: Iterable[str | Path] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Record:
    """Train a model under a defense, or a list of them, and keep its weights in the folder `out`: `guard.load(out)`.

    `dataset`: a source, whose training split is learned on, or the training images themselves, float32 in [0, 1] of
    shape (N, C, H, W) with labels int64 (N,). A live model is left as it is. `settings` are the config's other keys:
    training, seed, device. The same call on the same folder goes on where it was killed.

    Raises InputError for input that cannot be trained on, ContractError where the loss is NaN or a component fails.
    """
    registry = Registry.load(plugins)
    keys = {
        "dataset": live_training(dataset, model),
        "model": live_model(model),
        "defense": defense,
        "threat": threat,
        "plugins": [str(file) for file in plugins],
    }
    config = TrainingConfig.of(keys | settings, registry.create)
    return perform_training(config, Path(out).expanduser(), progress=progress)


def perform_training(
    config: TrainingConfig,
    out: Path,
    *,
    devices: int = 1,
    nodes: int = 1,
    tensorboard: bool = False,
    dry: bool = False,
    progress: Progress | None = None,
) -> Record:
    """Train by a config that has been read, and write weights, record, curves and page into `out`, which is its own.

    `dry`: one batch of everything alone.
    """
    progress = progress or Progress()
    claim(out, config)
    done = read_record(out)
    first = 1 + (len(done.epochs) if done else 0)
    with Events(out / "tensorboard", first) if tensorboard else nullcontext() as events:

        def told(record: Record) -> None:
            (out / "curves.csv").write_text(csv(record), encoding="utf-8")
            (out / "training.html").write_text(page(record), encoding="utf-8")
            progress.say(line(record.epochs[-1], config.training.epochs))
            if events is not None:
                events.add(record.epochs[-1])

        with alone(out):
            try:
                return run_training(config, out, devices=devices, nodes=nodes, dry=dry, progress=progress, told=told)
            except GuardError:
                done = read_record(out)
                if done is None or not done.epochs:  # a mended config may have the folder
                    for name in (CONFIG, RECORD):
                        (out / name).unlink(missing_ok=True)
                raise


def fit(
    attack: str | dict[str, Any] | LearnedAttack,
    model: nn.Module | ModelSource | str | dict[str, Any],
    dataset: Images,
    *,
    threat: ThreatModel | dict[str, Any],
    plugins: Iterable[str | Path] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> LearnedAttack:
    """Let an attack that learns do so against a model; the attack that is returned has learned.

    `dataset`: a source, whose training split it learns on, or the training images themselves, float32 in [0, 1] of
    shape (N, C, H, W) with labels int64 (N,). `settings` are the keys of an evaluation's config: goal, seed, device.
    What it returns goes to `evaluate(attacks=[it])` or `craft(it, ...)`, is picklable, and `it.save("it.safetensors")`
    writes what it learned, for `weights`. Learned once, it is kept in the cache.

    Raises InputError for what cannot learn or has nothing to learn on, ContractError where it fails at it.
    """
    registry = Registry.load(plugins)
    chosen = registry.create("attack", attack)
    if not isinstance(chosen, LearnedAttack):
        raise InputError(f"attack '{chosen.name}' has nothing to learn. Give it to evaluate or craft as it is")
    keys = {
        "dataset": live_training(dataset, model),
        "model": live_model(model),
        "attacks": [chosen],
        "threat": threat,
        "plugins": [str(file) for file in plugins],
    }
    config = EvaluationConfig.of(keys | settings, registry.create)
    return fit_attack(config, progress or Progress())


def craft(
    attack: str | dict[str, Any] | Attack | type[Attack],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    targets: Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    drop: bool = True,
    bf16: bool = False,
    max_queries: int | None = None,
    index: Tensor | None = None,
    plugins: Iterable[str | Path] = (),
) -> Tensor:
    """Adversarial images for a batch, checked against the threat model, on the images' device.

    `targets` int64 (N,) makes the goal targeted. `batch_size`: chosen by the size of the model's layers where left out.
    `drop`: stop at an image once it is adversarial. `bf16`: attacks that follow the sign of a gradient search in
    bfloat16, each success confirmed. `max_queries`: how often to ask about one image at most. `index` int64 (N,): the
    images' positions in their split, which key all random draws; 0 to N - 1 where left out.
    Raises InputError for bad input, ContractError where the attack breaks its contract.
    """
    if not isinstance(threat, ThreatModel):
        raise InputError(f"threat is {threat!r}. Give guard.ThreatModel(norm='linf', epsilon=8 / 255)")
    registry = Registry.load(plugins)
    chosen: Attack = registry.create("attack", attack)
    images = images.detach()
    check_images(images, labels, None)
    labels, network = labels.to(images.device).long(), image_model(model)
    classes = answer(network, images[:1], name_of(model)).shape[1]
    check_images(images, labels, classes)
    where = torch.arange(len(images)) if index is None else _checked("index", index, len(images), None)
    aims = None if targets is None else _checked("targets", targets, len(images), classes)
    if isinstance(chosen, LearnedAttack) and not chosen.learned and chosen.weights is not None:
        chosen = chosen.loaded(classes, (images.shape[1], images.shape[2], images.shape[3]))
    try:
        applicable(chosen, chosen.name, threat, network.access)
    except NotApplicable as error:
        raise InputError(str(error)) from error
    who = f"attack '{chosen.name}' from '{registry.origin(chosen).distribution}'"
    parts, victim = [], Network(network, access=network.access)
    for rows in torch.arange(len(images), device=images.device).split(batch_size or victim.batch_size(images)):
        batch = craft_batch(
            chosen,
            victim,
            images[rows],
            Goal(labels[rows], None if aims is None else aims.to(images.device)[rows]),
            threat,
            index=where.to(images.device)[rows],
            seed=seed,
            drop=drop,
            who=who,
            bf16=bf16,
            max_queries=max_queries,
        )
        parts.append(batch.adversarial)
    return torch.cat(parts)


def _checked(what: str, values: Tensor, images: int, classes: int | None) -> Tensor:
    """A whole number for each image, from 0, below `classes` where given. Raises InputError."""
    kind = f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape)}"
    if values.is_floating_point() or values.dtype == torch.bool or values.shape != (images,):
        raise InputError(f"{what} is {kind} for {images} images. Give int64 of shape ({images},)")
    low, high = int(values.min()), int(values.max())
    if low < 0 or (classes is not None and high >= classes):
        below = "" if classes is None else f" to {classes - 1}"
        raise InputError(f"{what} reaches from {low} to {high}. Give numbers from 0{below}")
    return values.long()


def load_run(folder: str | Path) -> Report:
    """The report that a run wrote into a folder, without its pictures. Raises InputError."""
    path = Path(folder) / "results.json"
    try:
        return Report.model_validate_json(path.read_text())
    except OSError as error:
        raise InputError(f"'{folder}' holds no results.json. Give the folder of a finished run") from error
    except ValidationError as error:
        raise InputError(f"'{path}' is no report of this version of guard. Run the evaluation again") from error
