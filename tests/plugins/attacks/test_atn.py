"""ATN: reranking and objective by hand, and what it learns: the target first, and the class before second."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from guard_plugins.attacks.atn import Atn
from torch import Tensor, nn

import guard
from guard import Goal, InputError, LearnedAttack, Rng, Step, ThreatModel, Victim, held
from guard.rng import seeded

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Fit = Callable[..., LearnedAttack]
Digits = tuple[nn.Module, Tensor, Tensor]
LINF = ThreatModel(norm="linf", epsilon=0.1)


def draws(count: int) -> Rng:
    return Rng(0, torch.arange(count), (3, 4, 4))


def network(attack: Atn) -> nn.Module:
    with seeded(0, torch.device("cpu")):
        return attack.unfitted(4, (3, 4, 4)).double()


def test_reranking_lifts_the_target_and_leaves_the_others() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.25, 0.5, 0.25]], dtype=torch.float64)
    given = probabilities.clone()
    goal = Goal(torch.tensor([0, 2, 1]), torch.tensor([2, 2, 0]))
    found = Atn()._reranked(probabilities, goal)
    by_hand = [[0.5 / 1.55, 0.3 / 1.55, 0.75 / 1.55], [0.1 / 1.35, 0.2 / 1.35, 1.05 / 1.35], [0.6, 0.4, 0.2]]
    by_hand[2] = [0.75 / 1.5, 0.5 / 1.5, 0.25 / 1.5]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64))
    assert torch.equal(probabilities, given), "not in place"
    torch.testing.assert_close(found.sum(1), torch.ones(3).double())
    lifted = Atn(alpha=3)._reranked(probabilities, goal)
    torch.testing.assert_close(lifted[0], torch.tensor([0.5, 0.3, 1.5]).double() / 2.3)


def test_the_order_of_the_others_is_kept() -> None:
    probabilities = torch.rand(50, 10, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    targets = torch.arange(50) % 10
    found = Atn()._reranked(probabilities, Goal(targets, targets))
    assert torch.equal(found.argmax(1), targets)
    others = torch.arange(10) != targets[:, None]
    before, after = probabilities[others].view(50, 9), found[others].view(50, 9)
    assert torch.equal(before.argsort(1), after.argsort(1))


def test_without_a_target_it_is_the_likeliest_class_beside_the_label() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    found = Atn()._reranked(probabilities, Goal(torch.tensor([0, 1, 2])))
    assert found.argmax(1).tolist() == [1, 0, 1]


@pytest.mark.parametrize("form", ["aae", "perturbation"])
def test_the_objective_is_the_papers(form: str, curved: nn.Module, images: Tensor) -> None:
    """One value for each image and their mean; the model's gradients stay its own."""
    attack = Atn(form=form, beta=0.3, alpha=2, hidden=7)
    net, labels = network(attack), curved(images).argmax(1)
    goal = Goal(labels, (labels + 1) % 4)
    victim = Victim(curved, images, draws(8), drop=False)
    step = Step(net, images, images, torch.arange(8), lambda: images.sum(), LINF, 0, 1, torch.Generator(), {})
    with held(curved):
        total = attack.objective(step, victim, goal)
        gradients = torch.autograd.grad(total, list(net.parameters()), retain_graph=True)
        values, distances = [], []
        for image, target in zip(images, (labels + 1) % 4, strict=True):
            added = net.layers(image[None])[0]  # type: ignore[operator]
            point = torch.sigmoid(added) if form == "aae" else (image + torch.tanh(added)).clamp(0, 1)
            wanted = curved(image[None])[0].softmax(0).detach()
            wanted[target] = 2 * wanted.max()
            wanted = wanted / wanted.sum()
            apart = (curved(point[None])[0].softmax(0) - wanted).square().sum()
            distances.append((point - image).square().sum().sqrt())
            values.append(0.3 * distances[-1] + apart)
        by_hand = torch.stack(values).mean()
        torch.testing.assert_close(total, by_hand, atol=1e-9, rtol=0)
        for gradient, wanted in zip(gradients, torch.autograd.grad(by_hand, list(net.parameters())), strict=True):
            torch.testing.assert_close(gradient, wanted, atol=1e-9, rtol=0)
    assert all(parameter.grad is None for parameter in curved.parameters())
    assert (victim.counts.forwards == 2).all()
    assert (victim.counts.backwards == 1).all()
    noted = step.notes["l2 distance"]
    torch.testing.assert_close(noted, torch.stack([torch.stack(distances).sum(), torch.tensor(8.0)]).detach().double())


@pytest.mark.parametrize("form", ["aae", "perturbation"])
def test_it_reaches_the_target_and_keeps_the_class_before_in_second_place(form: str, digits: Digits, fit: Fit) -> None:
    """On images that it did not learn on."""
    model, images, others = digits
    labels, before = model(images).argmax(1), model(others).argmax(1)
    attack = Atn(form=form, beta=0.01, hidden=128, epochs=30, batch_size=32, lr=0.003)
    attack = fit(attack, model, images, labels, LINF, goal={"targets": 3})
    points = attack.nearest(None, others, Goal(before), "linf", draws(200))  # type: ignore[attr-defined]
    assert points.min() >= 0
    assert points.max() <= 1
    first, second = model(points).topk(2, dim=1).indices.T
    rest = before != 3
    assert (first == 3).double().mean() > 0.9
    assert (second[rest] == before[rest]).double().mean() > 0.75


def test_a_larger_beta_keeps_it_nearer(digits: Digits, fit: Fit) -> None:
    model, images, others = digits
    lengths = []
    for beta in (0.001, 0.1):
        attack = Atn(beta=beta, hidden=64, epochs=8, batch_size=32, lr=0.005)
        attack = fit(attack, model, images, model(images).argmax(1), LINF, goal={"targets": 3})
        points = attack.nearest(None, others, Goal(torch.zeros(200).long()), "l2", draws(200))  # type: ignore[attr-defined]
        lengths.append(float((points - others).flatten(1).norm(dim=1).mean()))
    assert lengths[1] < 0.8 * lengths[0]


def test_its_row_tells_how_far_it_goes(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it learned does not depend on epsilon; inside one its points are projected, and may do less."""
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path))
    model, images, others = digits
    labels, answers = model(images).argmax(1), model(others).argmax(1)
    threats = [ThreatModel(norm="l2", epsilon=epsilon) for epsilon in (0.05, 8)]
    attack = Atn(hidden=64, epochs=8, batch_size=32)
    data = {"attacks": [attack], "threat": threats, "train_data": (images, labels)}
    small, large = guard.evaluate(model, (others, answers), **data).cells
    assert small.fit == large.fit
    assert small.fit is not None
    assert small.fit.epsilon is None
    assert small.median_distance == large.median_distance
    assert small.median_distance is not None
    assert 1 < small.median_distance < 8
    assert small.curve == large.curve
    assert [epsilon for epsilon, _ in small.curve] == sorted(epsilon for epsilon, _ in small.curve)
    assert small.curve[0] == (0, 1)
    assert small.robust_accuracy is not None
    assert large.robust_accuracy is not None
    assert small.robust_accuracy > 0.9 > 0.2 > large.robust_accuracy


@pytest.mark.parametrize("alpha", [1, 0.5])
def test_alpha_lifts(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        Atn(alpha=alpha)
