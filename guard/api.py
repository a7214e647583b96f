"""The public functions: evaluate, craft, model, load_run."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from guard.attack import Attack
from guard.classifier import ImageModel, model
from guard.config import EvaluationConfig
from guard.errors import GuardError, InputError, NotApplicable
from guard.evaluation.crafting import applicable
from guard.evaluation.crafting import craft as craft_batch
from guard.evaluation.folder import claim, release
from guard.evaluation.images import check_images
from guard.evaluation.network import Network, answer, beside
from guard.evaluation.run import run
from guard.goal import Goal
from guard.live import LiveData, LiveModel
from guard.progress import Progress
from guard.registry import Registry
from guard.report.report import Report
from guard.source import Data, DatasetSource, ModelSource
from guard.threat import ThreatModel

Images = tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any] | DatasetSource | str | dict[str, Any]
"""A pair (images, labels), a Dataset or DataLoader of such, or what a config writes under `dataset`."""


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
        "dataset": _dataset(dataset, train_data, model),
        "model": [_model(item) for item in model] if isinstance(model, list | tuple) else _model(model),
        "attacks": attacks,
        "defenses": defenses,
        "threat": threat,
        "plugins": [str(file) for file in plugins],
    }
    if "knowledge" in settings:
        settings["knowledge"] = _knowledge(settings["knowledge"])
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
    labels, network = labels.to(images.device).long(), _image_model(model)
    classes = answer(network, images[:1], _name(model)).shape[1]
    check_images(images, labels, classes)
    where = torch.arange(len(images)) if index is None else _checked("index", index, len(images), None)
    aims = None if targets is None else _checked("targets", targets, len(images), classes)
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


def _model(item: Any) -> Any:
    return LiveModel.of(_image_model(item), _name(item)) if isinstance(item, nn.Module) or callable(item) else item


def _knowledge(item: Any) -> Any:
    """With live source models wrapped."""
    if isinstance(item, list | tuple):
        return [_knowledge(part) for part in item]
    return {"transfer": _model(item["transfer"])} if isinstance(item, dict) and "transfer" in item else item


def _name(item: Any) -> str:
    inner = item.net if isinstance(item, ImageModel) else item
    return getattr(inner, "__name__", type(inner).__name__)


def _image_model(item: Any) -> ImageModel:
    return item if isinstance(item, ImageModel) else model(item)


def _dataset(dataset: Any, train_data: Any, model: Any) -> Any:
    """A data set source; what is live is checked and wrapped."""
    if isinstance(dataset, str | dict | DatasetSource):
        return dataset
    images, labels = _pair(dataset)
    check_images(images, labels, None)
    classes = _num_classes(model[0] if isinstance(model, list | tuple) else model, images)
    check_images(images, labels, classes)
    train = None
    if train_data is not None:
        pair = _pair(train_data)
        check_images(*pair, classes)
        train = _data(*pair)
    if classes is None:
        classes = 1 + int(max(part.max() for part in (labels, *([] if train is None else [train.labels]))))
    return LiveData.of(_data(images, labels), train, classes)


def _data(images: Tensor, labels: Tensor) -> Data:
    return Data.of(images.float().cpu(), labels.cpu())


def _num_classes(item: Any, images: Tensor) -> int | None:
    """How many logits a live model returns; None for a source, which is built for the data."""
    if not (isinstance(item, nn.Module) or callable(item)):
        return None
    network = _image_model(item)
    return answer(network, beside(network, images[:1]), _name(item)).shape[1]


def _pair(dataset: Any) -> tuple[Tensor, Tensor]:
    """Images and labels as tensors. Raises InputError for a DataLoader that shuffles."""
    if isinstance(dataset, tuple | list) and len(dataset) == 2 and isinstance(dataset[0], Tensor | np.ndarray):
        return torch.as_tensor(dataset[0]).detach(), torch.as_tensor(dataset[1])
    if isinstance(dataset, DataLoader):
        drawn_by = getattr(dataset.batch_sampler, "sampler", dataset.batch_sampler) or dataset.sampler
        if not isinstance(drawn_by, SequentialSampler) and not isinstance(dataset.dataset, IterableDataset):
            raise InputError("the DataLoader shuffles, and an image is known by its place. Give shuffle=False")
        if dataset.drop_last and len(dataset.dataset) % (dataset.batch_size or 1):  # type: ignore[arg-type]
            raise InputError("the DataLoader drops its last images. Give drop_last=False")
        batches = [(torch.as_tensor(images), torch.as_tensor(labels)) for images, labels in dataset]
        return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
    if isinstance(dataset, Tensor | np.ndarray):
        raise InputError("images come without labels. Give (images, labels)")
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, dict):
        pairs = [dataset[place] for place in range(len(dataset))]
        if not pairs or not isinstance(pairs[0][0], Tensor):
            raise InputError("the data set's items are no tensors. Give it transform=torchvision.transforms.ToTensor()")
        return torch.stack([image for image, _ in pairs]), torch.as_tensor([int(label) for _, label in pairs])
    raise InputError(f"{type(dataset).__name__} is no data set. Give (images, labels), a Dataset or a DataLoader")
