"""The floor: a loop that does nothing but forward, backward to the images, sign step and projection."""

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.measure import Run, attacked, batched, heading
from tests.benchmarks.victims import CHOICES, Victim, victim


def bare(epsilon: float, steps: int, step_size: float) -> Run:
    """PGD with a random start in linf."""

    def run(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        low, high = (images - epsilon).clamp_(min=0), (images + epsilon).clamp_(max=1)
        generator = torch.Generator().manual_seed(int(index[0]))
        points = low + (high - low) * torch.rand(images.shape, generator=generator)
        for _ in range(steps):
            points.requires_grad_()
            loss = F.cross_entropy(model(points), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, points)
            points = points.detach().add_(gradient.sign_(), alpha=step_size).clamp_(low, high)
        return points

    return run


def step_size(epsilon: float, steps: int) -> float:
    """What guard's pgd takes where none is given."""
    return 2.5 * epsilon / steps


def chosen(victim: Victim) -> float:
    """The victim's own epsilon; where it has none, one at which the bare loop leaves 55 to 65 %, found by bisection in
    thousandths of the range."""
    if victim.epsilon is not None:
        return victim.epsilon
    low, high = 0, 500
    while high - low > 1:
        middle = (low + high) // 2
        epsilon = middle / 1000
        run = batched(bare(epsilon, victim.steps, step_size(epsilon, victim.steps)), victim.batch_size)
        robust = attacked("bare loop", run, victim, epsilon).robust
        if 0.55 <= robust <= 0.65:
            return epsilon
        low, high = (middle, high) if robust > 0.65 else (low, middle)
    raise ValueError(f"{victim.name}: no epsilon in thousandths leaves 55 to 65 %. Take more images")


def selected(description: str | None, images: int) -> Iterator[tuple[Victim, float]]:
    """The victims that the command line names, all where it names none, each with its epsilon; prints the heading."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("victims", nargs="*", default=tuple(CHOICES), metavar="VICTIM", help=", ".join(CHOICES))
    parser.add_argument("--images", type=int, default=images, help="of each victim; a quarter for resnet18-cifar")
    arguments = parser.parse_args()
    print(heading())
    for name in arguments.victims:
        found = victim(name, arguments.images if name != "resnet18-cifar" else arguments.images // 4)
        if found is not None:
            yield found, chosen(found)
