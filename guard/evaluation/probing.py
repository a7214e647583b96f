"""Probing: whether what a network and its stages say of themselves is true of a few images."""

import torch
from torch import Tensor

from guard.defense import Defense
from guard.errors import ContractError
from guard.evaluation.network import Network
from guard.rng import Rng, seeded
from guard.stage import staged

_ASKED = 4  # times: what errs on one of twenty draws of an image is found on 16 images in 19 of 20 cases


def draws(network: Network, images: Tensor) -> bool:
    """Whether answers depend on draws, of torch's own generators or of a stage's; not where the network crashes, which
    scoring will tell."""
    try:
        first, *others = (network.logits(images, _rng(images, seed), seed) for seed in range(_ASKED))
    except ContractError:
        return False
    return not all(torch.allclose(first, other, rtol=1e-4, atol=1e-5, equal_nan=True) for other in others)


def check_stage(stage: Defense, images: Tensor) -> None:
    """Raise ContractError where a stage says that it is differentiable, answers each image otherwise, and lets no
    gradient through: attacks would look weak, and it robust."""
    if not stage.differentiable or not stage.overrides("preprocess"):
        return
    rng, device = _rng(images, 0), images.device
    with seeded(0, device), torch.enable_grad():
        leaf = images.clone().requires_grad_()
        answer = staged(stage, "preprocess", leaf, rng.fold(0))
        blind = not answer.requires_grad
        if not blind:
            weights = torch.linspace(-1, 1, answer.numel(), device=device, dtype=answer.dtype).view_as(answer)
            (gradient,) = torch.autograd.grad((answer * weights).sum(), leaf, allow_unused=True)
            blind = gradient is None or not gradient.any()
    if blind:
        with seeded(0, device), torch.no_grad():
            same = torch.equal(answer, staged(stage, "preprocess", 1 - images, rng.fold(0)))
        if not same:
            raise ContractError(
                f"defense '{stage.name}' lets no gradient through, and does not say so. Write differentiable = False, "
                f"and a surrogate where there is one"
            )


def _rng(images: Tensor, seed: int) -> Rng:
    return Rng(seed, torch.arange(len(images), device=images.device), tuple(images.shape[1:]))
