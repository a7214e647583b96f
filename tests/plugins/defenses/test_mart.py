"""MART against its formula, written out."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from guard import Defense, InputError, ThreatModel

Make = Callable[..., Defense]


def formula(model: nn.Module, images: Tensor, point: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Image by image, as the paper writes it."""
    p, q = model(images).softmax(1), model(point).softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for clean, moved, label in zip(p, q, labels.tolist(), strict=True):
        others = torch.cat([moved[:label], moved[label + 1 :]])
        total = total - moved[label].log() - (1 - others.max()).log()
        total = total + weight * (clean * (clean / moved).log()).sum() * (1 - clean[label])
    return total / len(labels)


def test_one_step_is_the_formula(
    make: Make,
    update: Callable[..., object],
    descended: Callable[..., nn.Module],
    same: Callable[..., None],
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    point, still = images.clone(), copy.deepcopy(network).eval()
    for _ in range(3):
        leaf = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(still(leaf), labels), leaf)
        point = torch.minimum(torch.maximum(point + 0.04 * gradient.sign(), images - 0.1), images + 0.1).clamp(0, 1)
    expected = descended(network, lambda model: formula(model, images, point, labels, 3.5))
    update(make("mart", beta=3.5, attack={"name": "bim", "steps": 3, "step_size": 0.04}), network, images, labels, linf)
    same(network, expected)


def test_its_defaults_are_the_papers(
    make: Make, network: nn.Module, images: Tensor, labels: Tensor, linf: ThreatModel
) -> None:
    mart = make("mart")
    assert mart.model_dump()["beta"] == 5
    assert mart.attack.model_dump()["steps"] == 10  # type: ignore[attr-defined]
    loss = mart.loss(network.eval(), images, images * 0.8, labels, Generator())
    torch.testing.assert_close(loss, formula(network, images, images * 0.8, labels, 5), rtol=0, atol=1e-12)


def test_it_stays_finite_and_has_a_gradient_where_the_network_is_sure_and_wrong(make: Make, labels: Tensor) -> None:
    logits = (F.one_hot((labels + 1) % 4, 4) * 200.0).requires_grad_()
    loss = make("mart").loss(lambda images: logits, logits, logits, labels, Generator())  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient.gather(1, labels[:, None]) < 0).all()
    assert (gradient.gather(1, (labels[:, None] + 1) % 4) > 0).all()


def test_soft_targets_are_refused(make: Make, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError, match="'mart' needs one label for each image; an augmentation or label smoothing"):
        make("mart").loss(network, images, images, F.one_hot(labels, 4).double(), Generator())
