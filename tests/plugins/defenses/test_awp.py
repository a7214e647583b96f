"""AWP against its formula, written out, alone and with the adversaries and losses it stands with."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guard import Defense, Registry, Step, ThreatModel

Make = Callable[..., Defense]
Update = Callable[..., Step]


def formula(model: nn.Module, loss: Callable[[nn.Module], Tensor], gamma: float) -> nn.Module:
    """w + v, one step of SGD at 0.3 there, and v taken away, on a copy."""
    proxy = copy.deepcopy(model)
    names = [name for name, weight in model.named_parameters() if weight.dim() > 1]
    proxy_weights = dict(proxy.named_parameters())
    gradients = torch.autograd.grad(loss(proxy), [proxy_weights[name] for name in names])
    model = copy.deepcopy(model)
    weights = dict(model.named_parameters())
    moves = {}
    for name, gradient in zip(names, gradients, strict=True):
        length = weights[name].detach().square().sum().sqrt()
        moves[name] = gamma * length * gradient / gradient.square().sum().sqrt()
    with torch.no_grad():
        for name, move in moves.items():
            weights[name] += move
    updates = torch.autograd.grad(loss(model), list(weights.values()))
    with torch.no_grad():
        for weight, gradient in zip(weights.values(), updates, strict=True):
            weight -= 0.3 * gradient
        for name, move in moves.items():
            weights[name] -= move
    return model


@pytest.mark.parametrize("gamma", [0.01, 0.3])
def test_one_step_is_the_formula_and_running_statistics_move_once(
    gamma: float,
    make: Make,
    update: Update,
    same: Callable[..., None],
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    expected = formula(network, lambda model: F.cross_entropy(model(images), labels), gamma)
    update(make("awp", gamma=gamma), network, images, labels, linf)
    same(network, expected)
    assert network[2].num_batches_tracked == 2  # type: ignore[index]


@pytest.mark.parametrize("name", ["adversarial-training", "trades", "mart", "gradalign", "fgsm-rs"])
@pytest.mark.parametrize("first", [True, False], ids=["left", "right"])
def test_the_adversary_is_crafted_once_and_the_loss_is_the_stacks(
    name: str,
    first: bool,
    make: Make,
    update: Update,
    same: Callable[..., None],
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    calls: list[Tensor] = []
    plain = make(name)

    class Counted(type(plain)):  # type: ignore[misc]
        def adversary(self, *arguments: object) -> Tensor:
            calls.append(super().adversary(*arguments))
            return calls[-1]

        def loss(self, model: nn.Module, clean: Tensor, moved: Tensor, targets: Tensor, generator: object) -> Tensor:
            loss: Tensor = super().loss(model, clean, moved, targets, torch.Generator().manual_seed(9))
            return loss

    member = Counted()
    before = copy.deepcopy(network)
    update([make("awp"), member] if first else [member, make("awp")], network, images, labels, linf)
    assert len(calls) == 1
    same(network, formula(before, lambda model: member.loss(model, images, calls[0], labels, None), 0.01))


def test_before_its_warmup_is_over_it_does_nothing(
    make: Make,
    update: Update,
    descended: Callable[..., nn.Module],
    same: Callable[..., None],
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    awp, late = make("awp", warmup=2, gamma=0.3), copy.deepcopy(network)
    expected = descended(network, lambda model: F.cross_entropy(model(images), labels))
    perturbed = formula(network, lambda model: F.cross_entropy(model(images), labels), 0.3)
    update(awp, network, images, labels, linf, epoch=1)
    same(network, expected)
    update(awp, late, images, labels, linf, epoch=2)
    same(late, perturbed)


def test_around_free_it_perturbs_once_and_inside_at_each_replay(
    make: Make, update: Update, network: nn.Module, images: Tensor, labels: Tensor, linf: ThreatModel
) -> None:
    def starts(*names: str) -> list[Tensor]:
        model, found = copy.deepcopy(network), []
        members = [make(name, **({"replays": 2} if name == "free" else {"gamma": 0.3})) for name in names]
        update(members, model, images, labels, linf, watch=lambda step: found.append(model[1].weight.clone()))  # type: ignore[index]
        assert (images.shape[0], len(found)) == (8, 2)
        return found

    weight = network[1].weight.detach()  # type: ignore[index]
    for order in (["awp", "free"], ["free", "awp"]):
        first, _ = starts(*order)
        torch.testing.assert_close((first - weight).norm(), 0.3 * weight.norm(), rtol=1e-9, atol=0)


def test_a_failing_update_leaves_the_weights(
    make: Make, update: Update, network: nn.Module, images: Tensor, labels: Tensor, linf: ThreatModel
) -> None:
    def fail(step: Step) -> None:
        raise RuntimeError("out of memory")

    before = network[1].weight.detach().clone()  # type: ignore[index]
    with pytest.raises(RuntimeError, match="out of memory"):
        update(make("awp"), network, images, labels, linf, watch=fail)
    torch.testing.assert_close(network[1].weight.detach(), before, rtol=0, atol=1e-15)  # type: ignore[index]


def test_weights_that_are_unused_frozen_or_flat_stay(
    registry: Registry,
    make: Make,
    update: Update,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    network.register_module("spare", nn.Linear(3, 3).double())
    network.forward = lambda images: nn.Sequential(*list(network)[:5])(images)  # type: ignore[method-assign, call-overload]
    network[4].weight.requires_grad_(False)  # type: ignore[index]
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    moved: list[str] = []

    def watch(step: Step) -> None:
        now = dict(network.named_parameters())
        moved.extend(name for name in before if not torch.equal(now[name], before[name]))

    update(make("awp"), network, images, labels, linf, watch=watch)
    assert moved == ["1.weight"]
