"""Losses and their gradients against the formulas of the papers."""

import pytest
import torch
from torch import Tensor

from guard import LOSSES, Goal
from guard.losses import cross_entropy, dlr, margin, probability

LABELS, TARGETS = torch.tensor([0, 1, 2, 4, 3, 0]), torch.tensor([1, 3, 0, 2, 4, 3])
LOGITS = 2 * torch.randn(6, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
ROWS = torch.arange(6)
UNTARGETED, TARGETED = Goal(LABELS), Goal(LABELS, TARGETS)
AIMED = UNTARGETED.aim(TARGETS)


def slope(loss: object, goal: Goal, logits: Tensor = LOGITS) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, goal).sum(), leaf)  # type: ignore[operator]
    return gradient


def one_hot(classes: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(classes, 5).double()


def runner_up(classes: Tensor) -> Tensor:
    return (LOGITS - 1e9 * one_hot(classes)).argmax(1)


def test_cross_entropy() -> None:
    logarithm = LOGITS - LOGITS.exp().sum(1, keepdim=True).log()
    torch.testing.assert_close(cross_entropy(LOGITS, UNTARGETED), -logarithm[ROWS, LABELS])
    torch.testing.assert_close(cross_entropy(LOGITS, TARGETED), logarithm[ROWS, TARGETS])
    softmax = LOGITS.softmax(1)
    torch.testing.assert_close(slope(cross_entropy, UNTARGETED), softmax - one_hot(LABELS))
    torch.testing.assert_close(slope(cross_entropy, TARGETED), one_hot(TARGETS) - softmax)
    torch.testing.assert_close(slope(cross_entropy, AIMED), one_hot(TARGETS) - softmax)


def test_margin() -> None:
    other = runner_up(LABELS)
    torch.testing.assert_close(margin(LOGITS, UNTARGETED), LOGITS[ROWS, other] - LOGITS[ROWS, LABELS])
    torch.testing.assert_close(slope(margin, UNTARGETED), one_hot(other) - one_hot(LABELS))
    torch.testing.assert_close(slope(margin, TARGETED), one_hot(TARGETS) - one_hot(runner_up(TARGETS)))
    torch.testing.assert_close(margin(LOGITS, AIMED), LOGITS[ROWS, TARGETS] - LOGITS[ROWS, LABELS])
    torch.testing.assert_close(slope(margin, AIMED), one_hot(TARGETS) - one_hot(LABELS))


def test_probability() -> None:
    p = LOGITS.softmax(1)
    torch.testing.assert_close(probability(LOGITS, UNTARGETED), -p[ROWS, LABELS])
    torch.testing.assert_close(probability(LOGITS, TARGETED), p[ROWS, TARGETS])
    label = p[ROWS, LABELS][:, None]
    torch.testing.assert_close(slope(probability, UNTARGETED), label * (p - one_hot(LABELS)))


def test_dlr_as_in_the_paper() -> None:
    """- (z_y - max z_i) / (z_1st - z_3rd), and - (z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2)."""
    for row in range(6):
        z, y, t = LOGITS[row].tolist(), int(LABELS[row]), int(TARGETS[row])
        first, _, third, fourth, _ = sorted(z, reverse=True)
        other = max(value for place, value in enumerate(z) if place != y)
        assert dlr(LOGITS, UNTARGETED)[row].item() == pytest.approx(-(z[y] - other) / (first - third))
        targeted = -(z[y] - z[t]) / (first - (third + fourth) / 2)
        assert dlr(LOGITS, TARGETED)[row].item() == pytest.approx(targeted)
        assert dlr(LOGITS, AIMED)[row].item() == pytest.approx(targeted)


def test_dlr_with_few_classes_is_the_margin() -> None:
    two, three = LOGITS[:2, :2], LOGITS[:3, :3]
    labels, targets = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert torch.equal(dlr(two, Goal(labels)), margin(two, Goal(labels)))
    assert torch.equal(dlr(two, Goal(labels, targets)), margin(two, Goal(labels, targets)))
    goal = Goal(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
    assert torch.equal(dlr(three, goal), margin(three, goal))
    assert not torch.equal(dlr(three, Goal(goal.labels)), margin(three, Goal(goal.labels)))


@pytest.mark.parametrize("goal", [UNTARGETED, TARGETED, AIMED], ids=["untargeted", "targeted", "aimed"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str, goal: Goal) -> None:
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, goal), LOGITS.clone().requires_grad_())  # type: ignore[index]


@pytest.mark.parametrize("goal", [UNTARGETED, TARGETED], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "dlr"])  # its spread grows along with its margin
def test_a_higher_loss_is_better_for_the_adversary(name: str, goal: Goal) -> None:
    """At equal other logits, the loss grows as the label's logit falls, or the target's rises."""
    loss = LOSSES[name]  # type: ignore[index]
    before = loss(LOGITS, goal)
    toward = one_hot(TARGETS) if goal.targets is not None else -one_hot(LABELS)
    assert (loss(LOGITS + 1e-3 * toward, goal) >= before).all()


@pytest.mark.parametrize("goal", [UNTARGETED, TARGETED, AIMED], ids=["untargeted", "targeted", "aimed"])
@pytest.mark.parametrize("name", LOSSES)
def test_saturated_and_constant_logits_give_finite_gradients(name: str, goal: Goal) -> None:
    loss = LOSSES[name]  # type: ignore[index]
    for logits in (torch.zeros(6, 5), 1e4 * one_hot(LABELS).float(), -1e4 * one_hot(LABELS).float()):
        assert slope(loss, goal, logits).isfinite().all()
        assert loss(logits, goal).isfinite().all()
        assert loss(logits, goal).shape == (6,)
