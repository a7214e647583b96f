"""The sign attacks: parity with loops written out by hand, and the size of their steps."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guard import Goal, InputError, Registry, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Perturb = Callable[..., Tensor]


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mi-fgsm"])
def test_linf_equals_a_loop_by_hand(
    name: str,
    targeted: bool,
    make_victim: Make,
    curved: nn.Module,
    images: Tensor,
    goal: Goal,
    perturb: Perturb,
    registry: Registry,
) -> None:
    epsilon, steps, decay = 0.08, 6, 0.7
    goal = Goal(goal.labels, (goal.labels + 1) % 4) if targeted else goal
    threat = ThreatModel(norm="linf", epsilon=epsilon)
    spec: dict[str, Any] = {"name": name}
    spec |= {} if name == "fgsm" else {"steps": steps}
    spec |= {"decay": decay} if name == "mi-fgsm" else {}
    adversarial = perturb(
        registry.create("attack", spec), make_victim(curved, images, drop=False), images, goal, threat
    )

    step = {"fgsm": epsilon, "bim": epsilon / steps, "mi-fgsm": epsilon / steps, "pgd": 2.5 * epsilon / steps}[name]
    rng = Rng(0, torch.arange(8), (3, 4, 4)).fold(0)
    x = threat.random_start(images, rng) if name == "pgd" else images
    velocity = torch.zeros_like(x)
    for _ in range(1 if name == "fgsm" else steps):
        x = x.detach().requires_grad_()
        sign, classes = (1, goal.labels) if goal.targets is None else (-1, goal.targets)
        (sign * F.cross_entropy(curved(x), classes, reduction="sum")).backward()
        assert x.grad is not None
        velocity = decay * velocity + x.grad / x.grad.abs().sum((1, 2, 3), keepdim=True)
        x = x.detach() + step * (velocity if name == "mi-fgsm" else x.grad).sign()
        x = x.clamp(images - epsilon, images + epsilon).clamp(0, 1)
    torch.testing.assert_close(adversarial, x, atol=1e-7, rtol=0)
    assert not torch.equal(x, images)


def test_l2_pgd_equals_a_loop_by_hand_inside_the_range(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal, perturb: Perturb, registry: Registry
) -> None:
    inner, epsilon = images * 0.2 + 0.4, 0.3
    threat = ThreatModel(norm="l2", epsilon=epsilon)
    attack = registry.create("attack", {"name": "pgd", "steps": 5, "step_size": 0.2})
    adversarial = perturb(attack, make_victim(curved, inner, drop=False), inner, goal, threat)
    x = threat.random_start(inner, Rng(0, torch.arange(8), (3, 4, 4)).fold(0))
    for _ in range(5):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(curved(x), goal.labels, reduction="sum"), x)
        moved = x.detach() + 0.2 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - inner
        x = inner + moved * (epsilon / moved.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(adversarial, x, atol=1e-7, rtol=0)


def test_momentum_is_scaled_by_each_images_own_gradient(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal, perturb: Perturb, registry: Registry
) -> None:
    """An image whose gradient is 1e-12 as large moves as far as alone, and one with none stays and harms nobody."""

    class Scaled(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = curved(points)
            return logits * points.new_tensor([1, 1e-12, 0, 1]).repeat(2)[: len(points), None]

    attack, threat = (
        registry.create("attack", {"name": "mi-fgsm", "loss": "margin"}),
        ThreatModel(norm="l2", epsilon=0.3),
    )
    adversarial = perturb(attack, make_victim(Scaled(), images, drop=False), images, goal, threat)
    plain = perturb(attack, make_victim(curved, images, drop=False), images, goal, threat)
    assert torch.equal(adversarial[[2, 6]], images[[2, 6]])
    torch.testing.assert_close(adversarial[[0, 1, 3, 4, 5, 7]], plain[[0, 1, 3, 4, 5, 7]], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["pgd", "bim", "mi-fgsm"])
def test_without_a_bound_a_step_size_is_asked_for(
    name: str, make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal, perturb: Perturb, registry: Registry
) -> None:
    threat = ThreatModel(norm="l2", epsilon=math.inf)
    with pytest.raises(InputError) as caught:
        perturb(registry.create("attack", name), make_victim(curved, images), images, goal, threat)
    assert str(caught.value) == f"epsilon is inf: give attack '{name}' a step_size"
    given = registry.create("attack", {"name": name, "step_size": 0.5, "steps": 20})
    adversarial = perturb(given, make_victim(curved, images), images, goal, threat)
    assert goal.reached(curved(adversarial)).all()


def test_fgsm_needs_a_bound(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal, perturb: Perturb, registry: Registry
) -> None:
    with pytest.raises(InputError, match="Give a finite epsilon"):
        perturb(
            registry.create("attack", "fgsm"),
            make_victim(curved, images),
            images,
            goal,
            ThreatModel(norm="l1", epsilon=math.inf),
        )


@pytest.mark.parametrize("size", [0, -1, math.inf, math.nan, True, "8/0"])
@pytest.mark.parametrize("name", ["pgd", "bim"])
def test_a_step_size_is_finite_and_above_0(name: str, size: object, registry: Registry) -> None:
    with pytest.raises(InputError, match=rf"^step_size of attack '{name}': \S+ .*; write (8/255 or 0\.3|a number)$"):
        registry.create("attack", {"name": name, "step_size": size})
