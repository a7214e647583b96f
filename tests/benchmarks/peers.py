"""Attacks of other libraries: PGD with the same steps, step size and random start, and what AutoAttack is made of.

All PGD take the cross-entropy and a start that is uniform in the ball, as the bare loop does.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.benchmarks.measure import Run


def torchattacks(epsilon: float, steps: int, step_size: float) -> Run:
    """github.com/Harry24k/adversarial-attacks-pytorch."""
    import torchattacks

    def run(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        adversarial: Tensor = torchattacks.PGD(model, epsilon, step_size, steps)(images, labels)
        return adversarial

    return run


def foolbox(epsilon: float, steps: int, step_size: float) -> Run:
    """github.com/bethgelab/foolbox."""
    import foolbox

    def run(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        _, clipped, _ = attack(wrapped, images, labels, epsilons=epsilon)
        adversarial: Tensor = clipped
        return adversarial

    return run


def art(epsilon: float, steps: int, step_size: float) -> Run:
    """github.com/Trusted-AI/adversarial-robustness-toolbox."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def run(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        wrapped = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(images.shape[1:]), 10, clip_values=(0, 1), device_type="cpu"
        )
        options: dict[str, Any] = {"eps": epsilon, "eps_step": step_size, "max_iter": steps, "num_random_init": 1}
        attack = ProjectedGradientDescentPyTorch(wrapped, math.inf, batch_size=len(images), verbose=False, **options)
        return torch.from_numpy(attack.generate(images.numpy(), labels.numpy().astype(np.int64)))

    return run


def adv_lib(epsilon: float, steps: int, step_size: float) -> Run:
    """github.com/jeromerony/adversarial-library."""
    from adv_lib.attacks import pgd_linf

    def run(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        adversarial: Tensor = pgd_linf(model, images, labels, epsilon, steps=steps, absolute_step_size=step_size)
        return adversarial

    return run


class _Contiguous(torch.autograd.Function):
    """The identity, with a gradient in the memory order that torchattacks' `view` needs."""

    @staticmethod
    def forward(ctx: object, images: Tensor) -> Tensor:
        return images.view_as(images)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class _Viewable(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(_Contiguous.apply(images))
        return logits


def standard_attacks(model: nn.Module, epsilon: float, seed: int) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """AutoAttack's four as torchattacks has them: attack(images, labels) -> adversarial images. Raises ImportError."""
    import torchattacks

    viewable, common = _Viewable(model), {"norm": "Linf", "eps": epsilon, "seed": seed, "n_restarts": 1}
    return [
        torchattacks.APGD(viewable, loss="ce", steps=100, **common),
        torchattacks.APGDT(viewable, steps=100, n_classes=10, **common),
        torchattacks.FAB(viewable, steps=100, multi_targeted=True, n_classes=10, **common),
        torchattacks.Square(viewable, n_queries=5000, **common),
    ]


LIBRARIES = {"torchattacks": torchattacks, "foolbox": foolbox, "art": art, "adv_lib": adv_lib}


def peers(epsilon: float, steps: int, step_size: float) -> dict[str, Run]:
    """Those that are installed; for each other a line that says so."""
    found: dict[str, Run] = {}
    for name, make in LIBRARIES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = make(epsilon, steps, step_size)
        except ImportError as error:
            print(f"({name} is left out: {error})")
    return found
