"""A training run: from a config to weights in a folder."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from guard.building import calibrating, copied, framed, label_of, to_train
from guard.environment import device_of, versions
from guard.errors import InputError, blamed
from guard.keys import UnkeyableError, component_key, data_key, key
from guard.progress import Progress
from guard.source import Data
from guard.training.behind import behind
from guard.training.checkpoint import Checkpoints
from guard.training.course import Course
from guard.training.fabric import launched
from guard.training.loop import estimate, train
from guard.training.record import Record
from guard.training.validation import hold_out
from guard.trainingconfig import TrainingConfig
from guard.userfile import FileModel
from guard.weights import save_tensors

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CONFIG, RECORD, WEIGHTS = "config.json", "training.json", "weights.safetensors"
MODEL = "model"  # the folder with the file that the model was built from
_AROUND = ("inner.", "net.")  # before the names of a network behind preprocesses, and of one that guard normalises for


def run(
    config: TrainingConfig,
    out: Path,
    *,
    devices: int = 1,
    nodes: int = 1,
    dry: bool = False,
    progress: Progress,
    told: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Train what a config says and keep its weights and its record in `out`; going on where one killed there stopped.

    `dry`: one batch of everything, and how long the whole would take is said. `told` gets the record after each epoch,
    in the first of several processes. Raises InputError and ContractError.
    """
    with launched(config.training, device_of(config.device), devices, nodes) as lightning:
        return _run(config, out, lightning, dry=dry, progress=progress, told=told)


def _run(
    config: TrainingConfig,
    out: Path,
    lightning: "Fabric",
    *,
    dry: bool,
    progress: Progress,
    told: Callable[[Record], None],
) -> Record:
    """The same in one process of those that were launched."""
    device = lightning.device  # this process's own
    if not lightning.is_global_zero:
        progress = Progress()
    dataset = framed(config.dataset, [config.model])
    try:
        data = dataset.load("train")
    except KeyError as error:
        raise InputError(f"data set '{dataset.name}' has no training images. Give one that has") from error
    stack, what = config.defense.stack, f"training {label_of(config.model)}"
    scratch = config.training.start == "scratch"
    with blamed(f"defense '{stack.label}'"):
        modifies = any(member.overrides("modify") for member in stack.members)
        calibration = calibrating(data, config.seed).floats().to(device) if modifies else torch.empty(0)
        model = copied(to_train(config.model, dataset, config.seed, scratch=scratch), what).to(device)
        model = stack.modify(model, calibration).to(device)
    network = behind(stack.stages, model)
    if dry:
        with blamed(what):
            whole = estimate(
                network, stack, data, config.threat, config.training, num_classes=dataset.num_classes, fabric=lightning
            )
        config, data = _brief(config, data)
    learned, held = hold_out(data, config.training.validation, config.seed)
    record = Record(
        config=config.model_dump(mode="json", by_alias=True),
        label=config.defense.label or config.defense.default_label,
        model=label_of(config.model),
        behind=tuple(stage.name for stage in stack.stages),
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        images=len(learned),
        held_out=len(held),
        data="" if dry else data_key(data),
        start=key(model.state_dict()),
        code=_code(config),
        versions=versions(),
    )
    done = lightning.broadcast(read_record(out) if lightning.is_global_zero else None)
    if done is not None and (done.data, done.start) != (record.data, record.start):
        raise InputError(f"'{out}' holds a training of other images or weights. Give another folder, or remove it")
    if done is not None and done.code != record.code:
        raise InputError(
            f"'{out}' holds a training from before the code of its model or defense was edited. "
            f"Give another folder, or remove it"
        )
    if done is not None and done.finished:
        progress.say(f"'{out}' holds this training, finished. Remove it to train anew")
        return done
    if done is None and lightning.is_global_zero:
        _write(record, out)
        if isinstance(config.model, FileModel):
            (out / MODEL).mkdir(exist_ok=True)
            shutil.copy(Path(config.model.path).expanduser(), out / MODEL)

    def watch(course: Course, weights: dict[str, Tensor]) -> None:
        nonlocal record
        record = _at(record, course, finished=course.over(config.training))
        try:
            save_tensors(_own(weights), out / WEIGHTS)
            _write(record, out)
            if not dry:
                told(record)
        except (OSError, SafetensorError) as error:
            raise InputError(f"'{out}' cannot be written: {error}. Make room and run the same command again") from error

    with blamed(what):
        course = train(
            network,
            stack,
            data,
            config.threat,
            config.training,
            num_classes=dataset.num_classes,
            seed=config.seed,
            fabric=lightning,
            progress=progress,
            what=what,
            folder=out,
            watch=watch,
        )
    record = _at(record, course, finished=True)
    if lightning.is_global_zero:
        _write(record, out)
        Checkpoints(out).clear()
    if dry:
        progress.say(
            f"one batch of everything went through; the whole training would take about {_duration(whole)} on {device}"
        )
    return record


def read_record(folder: Path) -> Record | None:
    """What a training wrote into a folder; None where there is none, or none that can be read."""
    try:
        return Record.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _brief(config: TrainingConfig, data: Data) -> tuple[TrainingConfig, Data]:
    """One epoch of one batch, and what is held out beside it."""
    training = config.training
    images = math.ceil(training.batch_size / (1 - training.validation))
    return config.model_copy(update={"training": training.model_copy(update={"epochs": 1})}), data[:images]


def _at(record: Record, course: Course, *, finished: bool) -> Record:
    return record.model_copy(update={"epochs": tuple(course.epochs), "kept": course.kept, "finished": finished})


def _write(record: Record, out: Path) -> None:
    partial = out / f"partial-{os.getpid()}-{RECORD}"
    partial.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(partial, out / RECORD)


def _own(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of the user's own network, without what guard put around it."""
    for prefix in _AROUND:
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _code(config: TrainingConfig) -> str:
    try:
        return key(*map(component_key, (config.model, *config.defense.stack.members)))
    except UnkeyableError:
        return ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
