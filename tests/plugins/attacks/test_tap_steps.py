"""TAP: its steps beside FGSM's and BIM's, through restarts, budgets and transforms, and in any batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guard_plugins.attacks.gradient_sign import BIM, FGSM
from guard_plugins.attacks.tap import TAP, PaperTAP
from torch import Tensor, nn

from guard import Goal, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Small = Callable[..., nn.Module]
Perturb = Callable[..., Tensor]
LINF = ThreatModel(norm="linf", epsilon=0.1)


@pytest.fixture
def goal(small: Small, images: Tensor) -> Goal:
    return Goal(small()(images).argmax(1))


@pytest.mark.parametrize("attack", [TAP(steps=1), PaperTAP(steps=1), TAP(steps=1, smoothness_weight=1e3)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_first_step_is_fgsms(
    attack: TAP, norm: Any, make_victim: Make, images: Tensor, goal: Goal, small: Small, perturb: Perturb
) -> None:
    threat = ThreatModel(norm=norm, epsilon=0.1)
    victim = make_victim(small(), images, drop=False)
    adversarial = perturb(attack, victim, images, goal, threat)
    assert torch.equal(adversarial, perturb(FGSM(loss=attack.loss), victim, images, goal, threat))
    assert not torch.equal(adversarial, images)


def test_without_the_two_new_terms_it_is_bim(
    make_victim: Make, images: Tensor, goal: Goal, small: Small, perturb: Perturb
) -> None:
    victim = make_victim(small(), images, drop=False)
    plain = TAP(feature_weight=0, smoothness_weight=0)
    assert torch.equal(
        perturb(plain, victim, images, goal, LINF), perturb(BIM(loss="margin"), victim, images, goal, LINF)
    )
    assert victim.counts.forwards.tolist() == [20] * 8  # no clean features are asked for
    assert plain.cost(4) == BIM().cost(4)


def test_features_are_compared_with_those_of_the_clean_image_and_not_of_the_first_point(
    make_victim: Make, images: Tensor, goal: Goal, small: Small
) -> None:
    """A restart starts elsewhere."""
    net, attack = small(), TAP(layers=("second",))
    victim = make_victim(net, images, drop=False)
    rng = Rng(0, torch.arange(8), (3, 4, 4))
    point, memory = attack.start(victim, images, goal, LINF, rng, 1)
    assert not torch.equal(point, images)
    expected = attack.normalised(net.second(F.relu(net.first(images - 0.5))).detach())
    torch.testing.assert_close(memory["layers.second"], expected)


def test_a_features_row_follows_its_image_when_others_are_dropped(
    make_victim: Make, images: Tensor, goal: Goal, small: Small, perturb: Perturb
) -> None:
    goal.labels[::2] = (goal.labels[::2] + 1) % 4  # these fall at once
    attack = TAP(layers=("first", "second"), feature_weight=5, steps=4)
    together = perturb(attack, make_victim(small(), images), images, goal, LINF)
    for row in range(8):
        rows = torch.tensor([row])
        alone = perturb(attack, make_victim(small(), images[rows], index=rows), images[rows], goal[rows], LINF)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("budget", [1, 2, 5, 7, 9])
def test_a_query_budget_holds_through_restarts(
    drop: bool, budget: int, make_victim: Make, images: Tensor, goal: Goal, small: Small, perturb: Perturb
) -> None:
    victim = make_victim(small(), images, max_queries=budget, drop=drop)
    victim[torch.tensor([4])].logits(images[4:5])  # one has less
    perturb(TAP(steps=3, restarts=3), victim, images, goal, ThreatModel(norm="linf", epsilon=1e-3))
    assert victim.counts.forwards.tolist() == [budget] * 8


def test_it_works_through_a_transform(
    make_victim: Make, images: Tensor, goal: Goal, small: Small, perturb: Perturb
) -> None:
    """Features are those of the transform; smoothness is the parameter's own."""
    net, grey = small(), torch.full_like(images, 0.5)
    victim = make_victim(net, images, drop=False)

    def shifted(z: Tensor, origin: Tensor) -> Tensor:
        return origin + (z - 0.5)

    inside = 0.2 + 0.6 * images
    attack = TAP(loss="cross-entropy", smoothness_weight=0.1)
    direct = perturb(attack, make_victim(net, inside, drop=False), inside, goal, LINF)
    through = perturb(attack, victim.through(shifted, inside), grey, goal, LINF)
    torch.testing.assert_close(through - grey, direct - inside, atol=1e-12, rtol=0)
