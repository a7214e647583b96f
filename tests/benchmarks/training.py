"""Training methods as a ratio to a bare loop of as many forwards and backwards.

    python -m tests.benchmarks.training [--model small-cnn | resnet18-cifar] [--batch 128] [--device cpu]

The bare loop is plain torch on tensors that are there already: each method's forwards and backwards, signed steps with
projection for those to the images, and SGD's update. Both take turns on the same batches; the ratio is that of medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guard import Data, Stack, ThreatModel
from guard.defense import stack
from guard.recipe import Training
from guard.training.fabric import fabric
from guard.training.updates import Updates
from tests.benchmarks.measure import heading, table
from tests.benchmarks.victims import REGISTRY

THREAT = ThreatModel(norm="linf", epsilon=8 / 255)
SHAPES = {"small-cnn": (1, 28, 28), "resnet18-cifar": (3, 32, 32)}


class Work(NamedTuple):
    """What one update of a method asks of the network."""

    forwards: int
    """Without a backward."""
    steps: int
    """A forward, and a backward to the images."""
    passes: int
    """Forwards with a common backward to the weights."""
    replays: int = 1
    """How often all of that; where more than once, the backward to the weights goes to the images, too."""
    ascents: int = 0
    """Forwards with a backward to the weights of their own."""


METHODS: dict[str, tuple[list[object], Work]] = {
    "none": ([], Work(0, 0, 1)),
    "fgsm-rs": (["fgsm-rs"], Work(0, 1, 1)),
    "n-fgsm": (["n-fgsm"], Work(0, 1, 1)),
    "pgd-at, 7 steps": ([{"name": "adversarial-training", "attack": {"name": "pgd", "steps": 7}}], Work(0, 7, 1)),
    "trades, 7 steps": ([{"name": "trades", "attack": {"name": "kl-pgd", "steps": 7}}], Work(1, 7, 2)),
    "mart, 7 steps": ([{"name": "mart", "attack": {"name": "pgd", "steps": 7}}], Work(0, 7, 2)),
    "free, 4 replays": ([{"name": "free", "replays": 4}], Work(0, 0, 1, 4)),
    "pgd-at + awp": (
        [{"name": "adversarial-training", "attack": {"name": "pgd", "steps": 7}}, "awp"],
        Work(0, 7, 1, ascents=1),
    ),
}


def bare(model: nn.Module, work: Work, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One update."""
    point = images
    for _ in range(work.replays):
        model.eval()
        with torch.no_grad():
            for _ in range(work.forwards):
                model(images)
        for weight in model.parameters():
            weight.requires_grad_(False)
        for _ in range(work.steps):
            leaf = point.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
            point = _stepped(point, gradient, images)
        for weight in model.parameters():
            weight.requires_grad_(True)
        model.train()
        for _ in range(work.ascents):
            torch.autograd.grad(F.cross_entropy(model(point), labels), list(model.parameters()))
        optimizer.zero_grad()
        leaf = point.detach().requires_grad_(work.replays > 1)
        loss = sum((F.cross_entropy(model(leaf), labels) for _ in range(work.passes)), torch.zeros(()))
        loss.backward()
        optimizer.step()
        if leaf.grad is not None:
            point = _stepped(point, leaf.grad, images)


def _stepped(point: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
    moved = point + 2 / 255 * gradient.sign()
    return torch.minimum(torch.maximum(moved, images - 8 / 255), images + 8 / 255).clamp(0, 1)


def median(one: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """CPU seconds of each, taking turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, found in zip((one, other), times, strict=True):
            start = time.process_time()
            call()
            found.append(time.process_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SHAPES), default="small-cnn")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape, training = SHAPES[given.model], Training(weight_decay=0)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(given.batch, *shape, generator=generator)
    labels = torch.randint(0, 10, (given.batch,), generator=generator)
    rows = []
    for name, (defenses, work) in METHODS.items():
        torch.manual_seed(0)
        nets = [REGISTRY.create("model", given.model).build(10, shape) for _ in range(2)]
        defense = stack([REGISTRY.create("defense", item) for item in defenses]) if defenses else Stack()
        updates = Updates(fabric(training, torch.device("cpu")), nets[0], defense, training, 10)
        optimizer = torch.optim.SGD(nets[1].parameters(), lr=0.01, momentum=0.9, nesterov=True)
        batch, count = Data.of(images, labels), iter(range(10**6))

        def ours(updates: Updates = updates, batch: Data = batch, count: object = count) -> None:
            number = next(count)  # type: ignore[call-overload]
            updates.update(batch, len(batch), THREAT, seed=number, number=number, epoch=0, lr=0.01)

        def theirs(net: nn.Module = nets[1], work: Work = work, optimizer: torch.optim.Optimizer = optimizer) -> None:
            bare(net, work, images, labels, optimizer)

        median(ours, theirs, 2)
        mine, plain = median(ours, theirs, given.repeats)
        rows.append([name, f"{given.batch / mine:,.0f}", f"{mine / plain:.2f}"])
    print(f"{heading()}\n{given.model}, batches of {given.batch}\n")
    print(table(["method", "images per CPU second", "time to the bare loop"], rows))


if __name__ == "__main__":
    main()
