"""Stage: what a defense does to the images before the model sees them, and the way back for gradients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from guard.errors import ContractError, blamed
from guard.rng import Rng


class Stage(Protocol):
    """One defense's part in it."""

    @property
    def differentiable(self) -> bool:
        """Whether gradients through `preprocess` are true."""

    @property
    def randomized(self) -> bool:
        """Whether `preprocess` draws from its rng."""

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The images that the model sees."""

    def surrogate(self, images: Tensor, rng: Rng) -> Tensor:
        """Its differentiable stand-in."""


def bridged(stages: Sequence[Stage], points: Tensor, rng: Rng) -> Tensor:
    """Images after all stages; the gradient of one that is not differentiable is its surrogate's, of the same draw.

    Raises ContractError where a stage crashes or loses images.
    """
    for number, stage in enumerate(stages):
        if stage.differentiable or not points.requires_grad:
            points = staged(stage, "preprocess", points, rng.fold(number))
            continue
        with torch.no_grad():
            processed = staged(stage, "preprocess", points.detach(), rng.fold(number))
        stand_in = staged(stage, "surrogate", points, rng.fold(number))
        points = stand_in + (processed - stand_in).detach()
    return points


@contextmanager
def evaluating(stage: object) -> Iterator[None]:
    """Hold the modules that a stage has as attributes in eval mode, and put them back as they were."""
    values = [*vars(stage).values(), *(getattr(stage, "__pydantic_private__", None) or {}).values()]
    parts = [part for value in values if isinstance(value, nn.Module) for part in value.modules() if part.training]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


def staged(stage: Stage, method: str, points: Tensor, rng: Rng) -> Tensor:
    """What a stage makes of images. Raises ContractError where it crashes or loses images."""
    name = f"defense '{getattr(stage, 'name', type(stage).__name__)}'"
    with blamed(name), evaluating(stage):
        result: object = getattr(stage, method)(points.clone(), rng)  # it may work in place
    if not isinstance(result, Tensor) or result.dim() != points.dim() or len(result) != len(points):
        what = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise ContractError(f"{name} returns {what} for images of {tuple(points.shape)}. Return as many images")
    return result
