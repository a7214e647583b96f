"""The images to evaluate, checked."""

import torch
from torch import Tensor

from guard.errors import InputError
from guard.source import Data, DatasetSource


def load_images(source: DatasetSource, limit: int | None, seed: int) -> Data:
    """All images of the source's split, or the `limit` that it samples. Raises InputError."""
    data = source.load(source.split)
    if limit is not None:
        data = source.sample(data, limit, seed)
    check_pixels((data[:1] if data.images.dtype == torch.uint8 else data).floats())  # all bytes lie in [0, 1]
    check_labels(data.labels, len(data.images), source.num_classes)
    if tuple(data.images.shape[1:]) != source.image_shape:
        raise InputError(
            f"data set '{source.name}' says that its images have shape {source.image_shape}, and loads images of "
            f"{tuple(data.images.shape[1:])}. Mend its image_shape"
        )
    return data


def check_images(images: Tensor, labels: Tensor, num_classes: int | None) -> None:
    """Raise InputError unless these are float images (N, C, H, W) in [0, 1] with one label each."""
    check_pixels(images)
    check_labels(labels, len(images), num_classes)


def check_pixels(images: Tensor) -> None:
    """Raise InputError unless these are float images (N, C, H, W) in [0, 1], at least one."""
    if images.dtype == torch.uint8:
        raise InputError("images are uint8. Give images.float() / 255")
    kind = str(images.dtype).removeprefix("torch.")
    if not images.is_floating_point() or images.dim() != 4:
        raise InputError(f"images are {kind} of shape {tuple(images.shape)}. Give float32 images of shape (N, C, H, W)")
    if not len(images):
        raise InputError("there are no images. Give at least one")
    if not images.isfinite().all():
        raise InputError("images hold NaN or infinity. Give finite images in [0, 1]")
    low, high = float(images.min()), float(images.max())
    if low >= 0 and 2 < high <= 255:
        raise InputError(f"images reach from {low:.3g} to {high:.3g}. Give images / 255")
    if low < 0 or high > 1:
        raise InputError(
            f"images reach from {low:.3g} to {high:.3g}: they look normalised. "
            f"Give guard.model(net, mean=..., std=...) and images in [0, 1]."
        )


def check_labels(labels: Tensor, images: int, num_classes: int | None) -> None:
    """Raise InputError unless these are int64 labels (N,) for as many images, each of a class there is."""
    if images != len(labels):
        raise InputError(f"there are {images} images and {len(labels)} labels. Give one label per image")
    if labels.dim() != 1 or labels.is_floating_point():
        kind = str(labels.dtype).removeprefix("torch.")
        raise InputError(f"labels are {kind} of shape {tuple(labels.shape)}. Give int64 labels of shape (N,)")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        classes = f"; there are {num_classes} classes, 0 to {num_classes - 1}" if num_classes else ""
        raise InputError(f"labels reach from {low:.0f} to {high:.0f}{classes}. Give labels that count from 0")
