"""Conflicts: photographs with the shapes of one and the texture of another."""

import math

import torch
from torch import Tensor, nn

from guard.errors import InputError
from guard.layers import held, recorded
from guard.layers import shapes as layer_shapes
from guard.progress import Progress

_FLOOR = 1e-5  # keeps the root's slope and the quotients finite where a channel is constant or a layer silent


def conflicts(
    model: nn.Module,
    shapes: Tensor,
    textures: Tensor,
    *,
    steps: int = 200,
    step_size: float = 0.02,
    weight: float = 0.1,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Tensor:
    """Images with the shapes of `shapes` and the texture of `textures`: all float (N, C, H, W) in [0, 1].

    Begins at the shapes and lowers, by `steps` of Adam on the pixels, the distance to the texture's channel means and
    standard deviations in the image and in the model's layers, plus `weight` times the distance to the shapes' own
    answer of the last of these layers. Each distance is squared and relative to what it is measured to, so that no
    layer rules; over the layers they are averaged. `step_size` is of the pixel range. Each image has an objective of
    its own, and nothing is drawn. The defaults were fitted by eye on a dozen pairs of photographs of 224 x 224
    and MobileNet v2.

    In the manner of Gatys, Ecker, Bethge: Image style transfer using convolutional neural networks, CVPR 2016, by which
    Geirhos et al. (ImageNet-trained CNNs are biased towards texture, ICLR 2019) made their cue conflicts. Ours are the
    choices of means and deviations (Huang, Belongie: Arbitrary style transfer in real-time with adaptive instance
    normalization, ICCV 2017) in place of Gram matrices, of the start, of the image's own colors, and of the layers: the
    last one at each resolution of the model, resolutions at least halving, without the lowest of several. The means of
    that one are what a network pools and classifies by; to match them is to choose its answer.

    `batch_size`: images at once. The model is held in eval mode and is to stand where the images do. Raises InputError
    where the images do not pair up, and for a model without a layer that answers in channels x height x width.
    """
    if shapes.shape != textures.shape or shapes.dim() != 4 or not len(shapes):
        raise InputError(
            f"shapes are {tuple(shapes.shape)}, textures {tuple(textures.shape)}. Give as many images (N, C, H, W) of "
            f"one size of both, at least one"
        )
    progress = progress or Progress()
    with held(model), torch.enable_grad():
        layers = _layers(model, shapes[:1].repeat(2, 1, 1, 1))
        progress.start("cue conflicts", len(shapes) * steps)
        try:
            parts = zip(shapes.split(batch_size), textures.split(batch_size), strict=True)
            made = [_lowered(_Aim(model, layers, *part), part[0], steps, step_size, weight, progress) for part in parts]
        finally:
            progress.finish()
    return torch.cat(made)


def _lowered(aim: "_Aim", start: Tensor, steps: int, step_size: float, weight: float, progress: Progress) -> Tensor:
    """A batch of images, from where they start."""
    points = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([points], lr=step_size)
    for _ in range(steps):
        (points.grad,) = torch.autograd.grad(aim.distance(points, weight).sum(), points)
        optimizer.step()
        with torch.no_grad():
            points.clamp_(0, 1)
        progress.advance(len(points))
    return points.detach()


class _Aim:
    """What a batch of images is to come near."""

    def __init__(self, model: nn.Module, layers: list[str], shapes: Tensor, textures: Tensor) -> None:
        self._model, self._layers = model, layers
        with torch.no_grad():
            self._content = self._answers(shapes)[-1]
            self._statistics = [_statistics(answer) for answer in self._answers(textures)]

    def distance(self, images: Tensor, weight: float) -> Tensor:
        """The objective of each image, (N,)."""
        answers = self._answers(images)
        found = zip(map(_statistics, answers), self._statistics, strict=True)
        texture = torch.stack([_relative(statistics, wanted) for statistics, wanted in found]).mean(0)
        return texture + weight * _relative(answers[-1], self._content)

    def _answers(self, images: Tensor) -> list[Tensor]:
        """The images and what each layer answers them with, (N, C, H, W)."""
        with recorded(self._model, self._layers, len(images)) as features:
            self._model(images)
        return [images, *(features[name] for name in self._layers)]


def _layers(model: nn.Module, images: Tensor) -> list[str]:
    """The last layer at each resolution, as `conflicts` says."""
    found: dict[tuple[int, ...], str] = {}
    for name, (_, *size) in layer_shapes(model, images).items():
        lowest = min((height for height, _ in found), default=math.inf)
        # paddings and uneven sides are no resolutions of their own
        if len(size) == 2 and min(size) > 1 and (tuple(size) in found or 2 * size[0] <= lowest):
            found[tuple(size)] = name
    if not found:
        raise InputError(
            "the model has no layer that answers in channels x height x width, whose statistics a texture is. "
            "Give a convolutional one"
        )
    names = list(found.values())
    return names[:-1] or names


def _statistics(answer: Tensor) -> Tensor:
    """Channel means and standard deviations, (N, 2C)."""
    deviations = (answer.var((2, 3), correction=0) + _FLOOR).sqrt()
    return torch.cat([answer.mean((2, 3)), deviations], 1)


def _relative(values: Tensor, wanted: Tensor) -> Tensor:
    """||values - wanted||^2 / ||wanted||^2 in l2 for each image, (N,)."""
    distance, size = (item.flatten(1).square().sum(1) for item in (values - wanted, wanted))
    return distance / size.clamp(min=_FLOOR)
