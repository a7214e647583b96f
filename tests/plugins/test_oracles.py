"""Acceptance: on linear classifiers the attacks reach the closed-form worst case, inside the pixel range."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard import Attack, Goal, Registry, Rng, ThreatModel, Victim

Make = Callable[..., Victim]
Linear = Callable[..., nn.Module]
EPSILON = {"linf": 0.2, "l2": 0.9, "l1": 2.5}


def scene(classes: int, border: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Images (6, 1, 3, 4), weight (classes, 12) and bias; with `border`, the range clips nearly every coordinate."""
    generator = torch.Generator().manual_seed(classes)
    images = torch.rand(6, 1, 3, 4, generator=generator, dtype=torch.float64)
    images = (images * 1.6 - 0.3).clamp(0, 1) if border else 0.45 + 0.1 * images
    weight = torch.randn(classes, 12, generator=generator, dtype=torch.float64)
    return images, weight, 0.1 * torch.randn(classes, generator=generator, dtype=torch.float64)


def attack(registry: Registry, spec: dict[str, Any]) -> Attack:
    made = registry.create("attack", spec)
    assert isinstance(made, Attack)
    return made


def perturb(made: Attack, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel) -> Tensor:
    adversarial = made.perturb(victim, images, goal, threat, Rng(0, torch.arange(len(images)), tuple(images.shape[1:])))
    assert threat.contains(adversarial, images).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    return adversarial


@pytest.mark.parametrize("border", [False, True], ids=["inside", "clipped"])
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("norm", EPSILON)
def test_pgd_reaches_the_exact_worst_margin_of_two_classes(
    norm: str,
    targeted: bool,
    border: bool,
    registry: Registry,
    linear: Linear,
    make_victim: Make,
    linear_optimum: Callable[..., np.ndarray],
) -> None:
    images, weight, bias = scene(2, border)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    goal, threat = Goal(labels, 1 - labels if targeted else None), ThreatModel(norm=norm, epsilon=EPSILON[norm])
    model = linear(weight, bias)
    made = attack(registry, {"name": "pgd", "steps": 100, "step_size": threat.epsilon, "loss": "margin"})
    adversarial = perturb(made, make_victim(model, images, drop=False), images, goal, threat)
    reached = goal.margin(model(adversarial)).detach()
    for row in range(6):
        away = (weight[1 - labels[row]] - weight[labels[row]]).numpy()
        best = torch.tensor(linear_optimum(norm, away, images[row].flatten().numpy(), threat.epsilon))
        exact = goal[torch.tensor([row])].margin(model(best.view(1, 1, 3, 4))).item()
        assert reached[row].item() == pytest.approx(exact, abs=1e-4)
        assert reached[row].item() >= exact - 1e-9, "no point of the ball can be better than the optimum"


@pytest.mark.parametrize("norm", EPSILON)
def test_pgd_aimed_at_each_class_reaches_the_exact_worst_case_of_several(
    norm: str, registry: Registry, linear: Linear, make_victim: Make, linear_optimum: Callable[..., np.ndarray]
) -> None:
    """Five classes: towards each other class the margin is linear; the smallest of them is the worst case."""
    images, weight, bias = scene(5, border=True)
    labels = torch.arange(6) % 5
    threat, model = ThreatModel(norm=norm, epsilon=EPSILON[norm]), linear(weight, bias)
    spec = {"name": "pgd", "steps": 100, "step_size": threat.epsilon, "loss": "margin"}
    reached, exact = [], []
    for shift in range(1, 5):
        goal = Goal(labels).aim((labels + shift) % 5)
        adversarial = perturb(attack(registry, spec), make_victim(model, images, drop=False), images, goal, threat)
        reached.append(goal.margin(model(adversarial)).detach())
        away = (weight[(labels + shift) % 5] - weight[labels]).numpy()
        best = [linear_optimum(norm, away[n], images[n].flatten().numpy(), threat.epsilon) for n in range(6)]
        exact.append(goal.margin(model(torch.tensor(np.array(best)).view_as(images))).detach())
    worst = torch.stack(exact).amin(0)
    torch.testing.assert_close(torch.stack(reached), torch.stack(exact), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.stack(reached).amin(0), worst, atol=1e-4, rtol=0)
    assert (worst < Goal(labels).margin(model(images)) - 0.5).all()


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("spec", ["fgsm", {"name": "bim", "steps": 7}, {"name": "mi-fgsm", "steps": 7}], ids=str)
def test_fgsm_bim_and_momentum_reach_it_where_the_range_is_not_active(
    spec: Any, norm: str, targeted: bool, registry: Registry, linear: Linear, make_victim: Make
) -> None:
    """There the worst margin is the clean one less epsilon times the dual norm of the difference of the weights."""
    images, weight, bias = scene(2, border=False)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    goal = Goal(labels, 1 - labels if targeted else None)
    threat, model = ThreatModel(norm=norm, epsilon=0.3), linear(weight, bias)
    adversarial = perturb(registry.create("attack", spec), make_victim(model, images, drop=False), images, goal, threat)
    dual = torch.linalg.vector_norm(weight[1] - weight[0], 1 if norm == "linf" else 2)
    torch.testing.assert_close(goal.margin(model(adversarial)), goal.margin(model(images)) - 0.3 * dual)


@pytest.mark.parametrize("name", ["fgsm", "bim", "mi-fgsm"])
def test_in_l1_one_pixel_carries_the_whole_budget(
    name: str, registry: Registry, linear: Linear, make_victim: Make
) -> None:
    images, weight, bias = scene(2, border=False)
    goal, threat = Goal(torch.zeros(6, dtype=torch.int64)), ThreatModel(norm="l1", epsilon=0.3)
    model = linear(weight, bias)
    adversarial = perturb(registry.create("attack", name), make_victim(model, images, drop=False), images, goal, threat)
    gained = goal.margin(model(images)) - goal.margin(model(adversarial))
    torch.testing.assert_close(gained, torch.full_like(gained, 0.3 * (weight[1] - weight[0]).abs().max()))


def test_dropping_returns_an_error_wherever_one_exists(
    registry: Registry, linear: Linear, make_victim: Make, linear_optimum: Callable[..., np.ndarray]
) -> None:
    """With drop on, PGD breaks exactly the images whose exact worst margin is at most 0."""
    images, weight, bias = scene(2, border=True)
    model, labels = linear(0.5 * weight, bias), torch.zeros(6, dtype=torch.int64)
    labels = model(images).argmax(1)
    for norm, epsilon in (("linf", 0.05), ("l2", 0.3), ("l1", 0.5)):
        goal, threat = Goal(labels), ThreatModel(norm=norm, epsilon=epsilon)
        made = attack(registry, {"name": "pgd", "steps": 200, "step_size": epsilon / 20})
        broken = goal.reached(model(perturb(made, make_victim(model, images), images, goal, threat)))
        exact = []
        for row, label in enumerate(labels.tolist()):
            away = 0.5 * (weight[1 - label] - weight[label]).numpy()
            best = torch.tensor(linear_optimum(norm, away, images[row].flatten().numpy(), epsilon)).view(1, 1, 3, 4)
            exact.append(goal[torch.tensor([row])].reached(model(best)).item())
        assert broken.tolist() == exact
        assert 0 < sum(exact) < 6, "the scene must have both"
