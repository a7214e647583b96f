"""Cues: does a network decide by shape or by texture?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guard.errors import InputError
from guard.statistics import wilson


@dataclass(frozen=True)
class ShapeBias:
    """How a network decided on images whose shape and texture are of different classes."""

    share: float | None
    """The shape bias: of its decisions for the one or the other, the share for shape; None where it made none."""
    interval: tuple[float, float] | None
    """Of the share, 95 % (Wilson)."""
    shape_decisions: int
    """Images it gave the class of their shape."""
    texture_decisions: int
    """Images it gave the class of their texture."""
    images: int
    """All whose two classes differ; the decisions that are missing are for a third class."""
    shares: dict[int, float | None]
    """The share by class of the shape."""


def shape_bias(predictions: Tensor, shapes: Tensor, textures: Tensor) -> ShapeBias:
    """The shape bias of predicted classes, on images whose shapes and textures are of the given ones: all int64 (N,).

    Images whose two classes are the same are dropped, and so, from the share, are decisions for a third class (Geirhos
    et al.: ImageNet-trained CNNs are biased towards texture, ICLR 2019). Raises InputError where the lengths differ.
    """
    if predictions.dim() != 1 or not predictions.shape == shapes.shape == textures.shape:
        given = ", ".join(str(tuple(classes.shape)) for classes in (predictions, shapes, textures))
        raise InputError(
            f"predictions, shapes and textures have the shapes {given}. Give each as classes (N,), one an image"
        )
    conflict = shapes != textures
    predictions, shapes, textures = predictions[conflict], shapes[conflict], textures[conflict]
    for_shape, for_texture = predictions == shapes, predictions == textures
    by_shape, by_texture = int(for_shape.sum()), int(for_texture.sum())
    return ShapeBias(
        share=_share(by_shape, by_texture),
        interval=wilson(by_shape, by_shape + by_texture) if by_shape + by_texture else None,
        shape_decisions=by_shape,
        texture_decisions=by_texture,
        images=len(shapes),
        shares={
            shape: _share(int(for_shape[shapes == shape].sum()), int(for_texture[shapes == shape].sum()))
            for shape in shapes.unique().tolist()
        },
    )


def decisions(predictions: Tensor, shapes: Tensor, textures: Tensor) -> Tensor:
    """What each image was decided by, float64 (N,): 1 its shape, 0 its texture, NaN neither, or where both are one.

    Their mean without the NaN is the shape bias.
    """
    found = torch.full(predictions.shape, torch.nan, dtype=torch.float64)
    found[predictions == textures] = 0
    found[predictions == shapes] = 1
    return found.masked_fill(shapes == textures, torch.nan)


def categories(probabilities: Tensor, members: Sequence[Sequence[int]]) -> Tensor:
    """The category that a network of other classes decides for, int64 (N,), of its probabilities (N, K).

    A category's `members` are the classes that belong to it. Decided is for the largest mean of their probabilities, as
    Geirhos et al. have it: their sum would favour categories of many classes. Raises InputError for a category without
    members or with one that the network lacks, and for logits.
    """
    classes = probabilities.shape[1]
    for number, group in enumerate(members):
        if not group or not all(0 <= member < classes for member in group):
            raise InputError(
                f"category {number} has the members {list(group)}; the network has {classes} classes. "
                f"Give each category at least one of 0 to {classes - 1}"
            )
    if ((probabilities < 0) | (probabilities > 1 + 1e-3)).any():
        low, high = probabilities.aminmax()
        raise InputError(f"probabilities reach from {low:.3g} to {high:.3g}: these are logits. Give logits.softmax(1)")
    return torch.stack([probabilities[:, list(group)].mean(1) for group in members], 1).argmax(1)


def _share(by_shape: int, by_texture: int) -> float | None:
    decisions = by_shape + by_texture
    return by_shape / decisions if decisions else None
