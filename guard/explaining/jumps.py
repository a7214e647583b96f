"""Jumps: how far an attack moves what each layer of a network answers, and how alike its perturbations are."""

import torch
from torch import Tensor, nn

from guard.errors import InputError
from guard.layers import held, recorded, shapes
from guard.precision import full_precision
from guard.rng import seeded


def jumps(model: nn.Module, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
    """How far each layer's activations move: ||a' - a|| / ||a|| in l2 for each image, float (N,), by layer.

    `clean`, `adversarial`: images (N, C, H, W). The layers are those of `Victim.layers`, by their names in the user's
    own network and in the order in which they run; the model is held in eval mode. A layer that answers a clean image
    with zeros alone jumps by 0 where it still does, else by infinity. What all layers answer to all images is held in
    memory at once. Raises InputError where the images are none, or of two shapes.
    """
    if clean.shape != adversarial.shape or not len(clean):
        raise InputError(
            f"clean images have shape {tuple(clean.shape)}, adversarial ones {tuple(adversarial.shape)}. "
            f"Give as many of both, at least one"
        )
    device, answers = clean.device, []
    with held(model), torch.no_grad(), full_precision(device):
        names = list(shapes(model, torch.cat([clean, adversarial])[:2]))
        for images in (clean, adversarial):
            with seeded(0, device), recorded(model, names, len(images)) as features:  # the same draws for both
                model(images)
            answers.append(features)
    return {name: _relative(*(features[name].flatten(1) for features in answers)) for name in names}


def likeness(perturbations: Tensor) -> Tensor:
    """The mean cosine of each perturbation (N, C, H, W) with all others that are not zero, float64 (N,).

    1: one perturbation for all images. NaN for a perturbation of zeros, and where there is no other.
    """
    flat = perturbations.flatten(1).double()
    length = flat.norm(dim=1, keepdim=True)
    directions = torch.where(length > 0, flat / length, 0)
    others = int((length > 0).sum()) - 1
    mean = (directions @ directions.sum(0) - 1) / others
    return mean.masked_fill((length[:, 0] == 0) | (others < 1), torch.nan)


def _relative(before: Tensor, after: Tensor) -> Tensor:
    distance, size = (after - before).norm(dim=1), before.norm(dim=1)
    return torch.where(distance > 0, distance / size, 0)
