"""FGSM-RS, N-FGSM and GradAlign against their formulas, written out."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from guard import Defense, InputError, Rng, ThreatModel

Make = Callable[..., Defense]
Ascent = Callable[..., Tensor]
EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 1.5}


def signs(model: nn.Module, point: Tensor, labels: Tensor, ascent: Ascent) -> Tensor:
    """In train mode, as in the authors' code."""
    return ascent(copy.deepcopy(model), point, lambda logits: F.cross_entropy(logits, labels)).sign()


def test_one_step_of_fgsm_rs_is_the_formula(
    make: Make,
    update: Callable[..., object],
    descended: Callable[..., nn.Module],
    same: Callable[..., None],
    ascent: Ascent,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    seed = int(torch.randint(2**62, (), generator=Generator().manual_seed(6)))
    delta = Rng(seed, torch.arange(len(images)), tuple(images.shape[1:])).uniform(-0.1, 0.1).double()
    assert ((images + delta) < 0).any(), "the gradient is taken outside the range, too"
    delta = (delta + 0.125 * signs(network, images + delta, labels, ascent)).clamp(-0.1, 0.1)
    point = torch.maximum(torch.minimum(delta, 1 - images), -images) + images
    expected = descended(network, lambda model: F.cross_entropy(model(point), labels))
    update(make("fgsm-rs"), network, images, labels, linf, seed=6)
    same(network, expected)


def test_one_step_of_n_fgsm_is_the_formula(
    make: Make,
    update: Callable[..., object],
    descended: Callable[..., nn.Module],
    same: Callable[..., None],
    ascent: Ascent,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    noisy = make("n-fgsm", step=1e-300).adversary(network, images, labels, linf, Generator().manual_seed(6))
    assert 0.19 < (noisy - images).abs().max() <= 0.2 + 1e-12
    delta = noisy - images + 0.1 * signs(network, noisy, labels, ascent)
    point = torch.maximum(torch.minimum(delta, 1 - images), -images) + images
    assert (point - images).abs().max() > 0.25  # not taken back into the ball
    expected = descended(network, lambda model: F.cross_entropy(model(point), labels))
    update(make("n-fgsm"), network, images, labels, linf, seed=6)
    same(network, expected)


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_one_step_of_gradalign_is_the_formula(
    soft: bool,
    make: Make,
    update: Callable[..., object],
    descended: Callable[..., nn.Module],
    same: Callable[..., None],
    ascent: Ascent,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    targets = 0.7 * F.one_hot(labels, 4) + 0.1 if soft else labels
    before, seen = copy.deepcopy(network), []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    update(make("gradalign", weight=0.7), network, images, targets, linf, seed=2)
    handle.remove()
    _, _, clean, noisy = seen  # FGSM, the adversarial images, then the two gradients
    assert torch.equal(clean, images)
    assert (noisy - images).abs().max() <= 0.1 + 1e-12
    assert 0.04 < (noisy - images).std() < 0.06
    point = (images + 0.1 * signs(before, images, labels, ascent)).clamp(0, 1)

    def formula(model: nn.Module) -> Tensor:
        entropy = F.cross_entropy(model(point), targets)
        gradients = []
        for each in (images, noisy):
            leaf = each.clone().requires_grad_()
            gradients += torch.autograd.grad(F.cross_entropy(model(leaf), targets), leaf, create_graph=True)
        one, other = (gradient.flatten(1) for gradient in gradients)
        cosine = (one * other).sum(1) / (one.square().sum(1).sqrt() * other.square().sum(1).sqrt())
        return entropy + 0.7 * (1 - cosine).mean()

    same(network, descended(before, formula))


@pytest.mark.parametrize("seen", [0, 4, 8])
def test_gradalign_leaves_out_images_without_a_gradient(
    seen: int, make: Make, network: nn.Module, images: Tensor, labels: Tensor, linf: ThreatModel
) -> None:
    """The mean is over the others: as if they were the batch, which have the same draws."""

    class Blind(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return network.eval()(points) * (torch.arange(len(points)) < seen)[:, None]

    gradalign = make("gradalign", weight=1)
    gradalign.adversary(network, images, labels, linf, Generator())

    def penalty(model: nn.Module, count: int) -> Tensor:
        some, targets = images[:count], labels[:count]
        loss = gradalign.loss(model, some, some, targets, Generator().manual_seed(0))
        return loss - F.cross_entropy(model(some), targets)

    partial = penalty(Blind(), 8)
    (gradient,) = torch.autograd.grad(partial, network[1].weight)  # type: ignore[index]
    assert gradient.isfinite().all()
    if seen:
        torch.testing.assert_close(partial, penalty(network, seen), rtol=0, atol=1e-12)
        assert partial > 1e-4
    else:
        assert partial == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["fgsm-rs", "n-fgsm", "gradalign"])
def test_they_work_in_every_norm(
    name: str, norm: str, make: Make, update: Callable[..., object], network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    threat, defense = ThreatModel(norm=norm, epsilon=EPSILON[norm]), make(name)
    adversarial = defense.adversary(network, images, labels, threat, Generator())
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    distance = threat.distance(adversarial, images)
    assert (distance > 0.5 * threat.epsilon).all()
    assert threat.contains(adversarial, images).all() or (
        name == "n-fgsm" and (distance <= 3.001 * threat.epsilon).all()
    )
    entropy = F.cross_entropy(network.eval()(adversarial), labels), F.cross_entropy(network(images), labels)
    assert entropy[0] > entropy[1]
    before = network[1].weight.clone()  # type: ignore[index]
    update(defense, network.train(), images, labels, threat)
    assert not torch.equal(network[1].weight, before)  # type: ignore[index]


@pytest.mark.parametrize("name", ["fgsm-rs", "n-fgsm", "gradalign"])
def test_bad_radii_are_refused(name: str, make: Make, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    def craft(threat: ThreatModel, **parameters: object) -> None:
        make(name, **parameters).adversary(network, images, labels, threat, Generator())

    with pytest.raises(InputError, match=f"epsilon is inf: defense '{name}' takes steps of its length. Give it an eps"):
        craft(ThreatModel(norm="l2", epsilon=float("inf")))
    craft(ThreatModel(norm="l2", epsilon=float("inf")), epsilon=0.5)
    with pytest.raises(InputError, match=rf"'{name}': epsilon is 8.*did you mean 8/255"):
        craft(ThreatModel(norm="linf", epsilon=0.1), epsilon=8)


def test_noise_beyond_the_range_is_refused(make: Make, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    threat = ThreatModel(norm="linf", epsilon=0.6)
    with pytest.raises(
        InputError, match=r"the noise of defense 'n-fgsm' reaches 1.2.* Give it a noise of at most 1.66"
    ):
        make("n-fgsm").adversary(network, images, labels, threat, Generator())
    make("n-fgsm", noise=1.66).adversary(network, images, labels, threat, Generator())
