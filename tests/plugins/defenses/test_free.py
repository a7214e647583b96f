"""Free adversarial training against its algorithm, written out."""

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guard import Defense, InputError, Step, ThreatModel
from guard.defense import stack

Make = Callable[..., Defense]
KEPT = "free.perturbation"


def algorithm(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], replays: int, epsilon: float
) -> tuple[nn.Module, Tensor]:
    """The paper's, with the perturbation clamped to ball and range; plain SGD at 0.3."""
    model = copy.deepcopy(model)
    weights, delta = list(model.parameters()), torch.zeros_like(batches[0][0])
    for images, labels in batches:
        count = len(images)
        for _ in range(replays):
            leaf = torch.maximum(torch.minimum(delta[:count], 1 - images), -images).requires_grad_()
            *gradients, by_delta = torch.autograd.grad(F.cross_entropy(model(images + leaf), labels), [*weights, leaf])
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= 0.3 * gradient
                moved = (leaf + epsilon * by_delta.sign()).clamp(-epsilon, epsilon)
                delta[:count] = torch.maximum(torch.minimum(moved, 1 - images), -images)
    return model, delta


def test_its_steps_are_the_algorithms_over_replays_and_batches(
    make: Make,
    update: Callable[..., Step],
    same: Callable[..., None],
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    batches = [(images, labels), (images.flip(0) * 0.9, labels), (images[:3], labels[:3]), (images, labels)]
    expected, delta = algorithm(network, batches, 3, 0.1)
    memory: dict[str, Tensor] = {}
    for some, targets in batches:
        update(make("free", replays=3), network, some, targets, linf, memory=memory)
    same(network, expected)
    torch.testing.assert_close(memory[KEPT], delta, rtol=0, atol=1e-12)


def test_each_replay_proceeds_once_on_the_next_point(
    make: Make, update: Callable[..., Step], network: nn.Module, images: Tensor, labels: Tensor, linf: ThreatModel
) -> None:
    points: list[Tensor] = []
    update(make("free"), network, images, labels, linf, watch=lambda step: points.append(step.adversarial.detach()))
    assert len(points) == 8
    assert torch.equal(points[0], images)
    assert all(not torch.equal(one, other) for one, other in pairwise(points))
    assert all(linf.contains(point, images).all() and point.min() >= 0 and point.max() <= 1 for point in points)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms_keep_to_the_ball(
    norm: str, make: Make, update: Callable[..., Step], network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    threat = ThreatModel(norm=norm, epsilon={"l2": 0.5, "l1": 1.5}[norm])
    memory: dict[str, Tensor] = {}
    step = update(make("free", replays=4), network, images, labels, threat, memory=memory)
    assert threat.contains(step.adversarial.detach(), images).all()
    assert threat.distance(images + memory[KEPT], images).min() > 0.9 * threat.epsilon


def test_a_larger_batch_and_a_resumed_memory_go_on(
    make: Make, update: Callable[..., Step], network: nn.Module, images: Tensor, labels: Tensor, linf: ThreatModel
) -> None:
    memory: dict[str, Tensor] = {}
    update(make("free", replays=1), network, images[:5], labels[:5], linf, memory=memory)
    kept = memory[KEPT].clone()
    network, images = network.float(), images.float()
    step = update(make("free", replays=1), network, images, labels, linf, memory={KEPT: kept})
    assert step.adversarial.dtype == torch.float32
    torch.testing.assert_close(step.adversarial[:5], images[:5] + kept.float(), rtol=0, atol=1e-6)
    assert torch.equal(step.adversarial[5:], images[5:])
    assert not memory[KEPT].requires_grad


def test_it_is_the_adversary_of_its_stack(make: Make) -> None:
    with pytest.raises(InputError, match="'free' and 'adversarial-training' both bring their own adversary"):
        stack([make("free"), make("adversarial-training")])


def test_what_does_not_fit_is_refused(
    make: Make, update: Callable[..., Step], network: nn.Module, images: Tensor, labels: Tensor, linf: ThreatModel
) -> None:
    class Clean(Defense):
        name = "clean"

        def loss(self, model: nn.Module, images: Tensor, *rest: object) -> Tensor:  # type: ignore[override]
            return F.cross_entropy(model(images), labels)

    with pytest.raises(InputError, match="'free' stands with a loss of the clean images only"):
        update([make("free"), Clean()], network, images, labels, linf)
    with pytest.raises(InputError, match="epsilon is inf: defense 'free'"):
        update(make("free"), network, images, labels, ThreatModel(norm="l2", epsilon=float("inf")))
    with pytest.raises(InputError, match="replays of defense 'free' is 0; it must be above 0"):
        make("free", replays=0)
