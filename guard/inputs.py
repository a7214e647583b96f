"""Inputs: what a program hands over, as sources."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from guard.building import answer, beside
from guard.classifier import ImageModel, model
from guard.errors import InputError
from guard.evaluation.images import check_images
from guard.live import LiveData, LiveModel
from guard.source import Data, DatasetSource

Images = tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any] | DatasetSource | str | dict[str, Any]
"""A pair (images, labels), a Dataset or DataLoader of such, or what a config writes under `dataset`."""


def live_model(item: Any) -> Any:
    """A model source; what is live is wrapped."""
    return LiveModel.of(image_model(item), name_of(item)) if isinstance(item, nn.Module) or callable(item) else item


def live_knowledge(item: Any) -> Any:
    """With live source models wrapped."""
    if isinstance(item, list | tuple):
        return [live_knowledge(part) for part in item]
    return {"transfer": live_model(item["transfer"])} if isinstance(item, dict) and "transfer" in item else item


def name_of(item: Any) -> str:
    """What reports call a live model."""
    inner = item.net if isinstance(item, ImageModel) else item
    return getattr(inner, "__name__", type(inner).__name__)


def image_model(item: Any) -> ImageModel:
    """A module or a function as `guard.model` makes it."""
    return item if isinstance(item, ImageModel) else model(item)


def live_dataset(dataset: Any, train_data: Any, model: Any) -> Any:
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
        train = _data_of(*pair)
    if classes is None:
        classes = 1 + int(max(part.max() for part in (labels, *([] if train is None else [train.labels]))))
    return LiveData.of(_data_of(images, labels), train, classes)


def live_training(dataset: Any, model: Any) -> Any:
    """A data set source to train on; live images are its training split."""
    if isinstance(dataset, str | dict | DatasetSource):
        return dataset
    pair = _pair(dataset)
    found: LiveData = live_dataset(pair, pair, model)
    return found


def _data_of(images: Tensor, labels: Tensor) -> Data:
    return Data.of(images.float().cpu(), labels.cpu())


def _num_classes(item: Any, images: Tensor) -> int | None:
    """How many logits a live model returns; None for a source, which is built for the data."""
    if not (isinstance(item, nn.Module) or callable(item)):
        return None
    network = image_model(item)
    return answer(network, beside(network, images[:1]), name_of(item)).shape[1]


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
