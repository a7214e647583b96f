"""PGD of other libraries, each with the same steps, step size and random start. One that is not installed is left out.

All take the cross-entropy and a start that is uniform in the ball, as the bare loop does.
"""

import math
import warnings
from importlib.util import find_spec
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


LIBRARIES = {"torchattacks": torchattacks, "foolbox": foolbox, "art": art, "adv_lib": adv_lib}


def peers(epsilon: float, steps: int, step_size: float) -> dict[str, Run]:
    """Those that are installed; for each other a line that says so."""
    found: dict[str, Run] = {}
    for name, make in LIBRARIES.items():
        if find_spec(name) is None:
            print(f"({name} is not installed: left out)")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = make(epsilon, steps, step_size)
    return found
