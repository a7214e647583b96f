"""AutoAttack spends what the reference spends; its fast estimate spends where an image might still fall."""

from collections.abc import Callable

import pytest
import torch
from guard_plugins.attacks import fast_autoattack
from guard_plugins.attacks.autoattack import AutoAttack
from guard_plugins.attacks.fast_autoattack import FastAutoAttack
from guard_plugins.attacks.fast_pgd import FastPGD
from torch import Tensor, nn

import guard
from guard import Goal, Rng, ThreatModel, Victim

Make = Callable[..., Victim]
LINF = ThreatModel(norm="linf", epsilon=0.05)


def confident(linear: Callable[..., nn.Module], classes: int) -> nn.Module:
    """A linear model whose first class cannot lose inside the ball."""
    weight = torch.randn(classes, 12, generator=torch.Generator().manual_seed(0)).double()
    bias = torch.zeros(classes).double()
    bias[0] = 20
    return linear(weight, bias)


def perturb(attack: guard.Attack, victim: Victim, images: Tensor, threat: ThreatModel = LINF) -> Tensor:
    goal = Goal(torch.zeros(len(images), dtype=torch.int64))
    return attack.perturb(victim, images, goal, threat, Rng(0, torch.arange(len(images)), tuple(images.shape[1:])))


@pytest.fixture
def small() -> Tensor:
    return torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(3)).double()


def test_an_image_that_stays_robust_received_the_references_budgets(
    make_victim: Make, linear: Callable[..., nn.Module], small: Tensor
) -> None:
    victim = make_victim(confident(linear, 10), small[:1])
    perturb(AutoAttack(), victim, small[:1])
    parts = victim.counts.parts
    assert list(parts) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [int(parts[name].backwards) for name in parts] == [100, 9 * 100, 9 * 100, 0]
    judged = 1  # a forward after each member says what is left
    assert int(parts["apgd-ce"].forwards) == 100
    assert int(parts["apgd-t"].forwards) == 1 + 9 * 100 + 8  # a ranking of the classes, and one between targets
    assert int(parts["fab-t"].forwards) >= 2 * 9 * 100  # one to see where each step has led
    assert int(parts["square"].forwards) == 5000
    total = sum(int(part.forwards) for part in parts.values()) + 4 * judged
    assert int(victim.counts.forwards) == total
    cost = AutoAttack().cost(10)
    assert cost is not None
    assert total <= cost.forwards <= total + 5
    assert cost.backwards == 1900


def test_plus_and_l1_have_their_members() -> None:
    l1 = ThreatModel(norm="l1", epsilon=1)
    assert [name for name, _ in AutoAttack(version="plus").members(LINF)] == [
        "apgd-ce",
        "apgd-dlr",
        "fab",
        "square",
        "apgd-t",
        "fab-t",
    ]
    assert [name for name, _ in AutoAttack(version="rand").members(LINF)] == ["apgd-ce", "apgd-dlr"]
    assert [name for name, _ in AutoAttack().members(l1)] == ["apgd-ce", "apgd-t", "fab-t"]
    assert dict(AutoAttack().members(l1))["apgd-ce"].model_dump()["restarts"] == 5


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_enough(
    make_victim: Make, linear: Callable[..., nn.Module], small: Tensor, classes: int
) -> None:
    model = confident(linear, classes)
    for attack in (AutoAttack(), AutoAttack(version="plus"), FastAutoAttack(runs=1, queries=5)):
        for budget in (1, 12, 30, 400):
            victim = make_victim(model, small, max_queries=budget)
            points = perturb(attack, victim, small)
            assert LINF.contains(points, small).all()
            assert (victim.counts.forwards <= budget).all()
            assert (victim.counts.forwards == budget).all() or (budget == 400 and isinstance(attack, FastAutoAttack))
            if isinstance(attack, FastAutoAttack):
                assert victim.counts.undecided.all() == (budget < 400)


def test_fast_autoattack_leaves_alone_what_cannot_fall_and_goes_on_where_it_might(
    make_victim: Make, linear: Callable[..., nn.Module], small: Tensor
) -> None:
    """On a linear model every run ends at the same margin; one that is far from zero decides at once."""
    victim = make_victim(confident(linear, 10), small)
    perturb(FastAutoAttack(runs=3, queries=50), victim, small)
    parts = victim.counts.parts
    assert list(parts) == ["fast-pgd", "corners", "square"]
    assert parts["square"].forwards.tolist() == [fast_autoattack.GLANCE] * 3
    assert not victim.counts.undecided.any()


class Blind(nn.Module):
    """Its gradient says nothing: a linear model behind rounding."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, points: Tensor) -> Tensor:
        return self.inner((points * 50).round() / 50 + 0 * points)


def test_where_gradients_say_nothing_the_glance_of_square_keeps_images_in_doubt(
    make_victim: Make, linear: Callable[..., nn.Module]
) -> None:
    generator = torch.Generator().manual_seed(5)
    images = 0.3 + 0.4 * torch.rand(6, 1, 8, 8, generator=generator).double()
    weight = torch.stack([torch.zeros(64), torch.randn(64, generator=generator)]).double()
    plain = linear(weight, torch.zeros(2).double())
    margins = plain(images)[:, 1]
    reach = 0.05 * weight[1].abs().sum()
    bias = torch.stack([margins.max() + 0.6 * reach, torch.zeros(()).double()])
    model = Blind(linear(weight, bias))
    victim = make_victim(model, images)
    points = perturb(FastAutoAttack(runs=2, queries=600), victim, images)
    fell = model(points).argmax(1) == 1
    asked = victim.counts.parts["square"].forwards > fast_autoattack.GLANCE
    undecided = victim.counts.undecided
    assert fell.any()
    assert (fell | undecided).all(), "an image that Square could move further than gradients is decided by neither"
    assert (asked | fell).all()
    assert not (undecided & fell).any()


def test_the_report_says_that_it_is_an_estimate_and_how_many_images_it_left(
    linear: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path))
    generator = torch.Generator().manual_seed(5)
    images = 0.3 + 0.4 * torch.rand(40, 1, 8, 8, generator=generator)
    weight = torch.stack([torch.zeros(64), torch.randn(64, generator=generator)])
    plain = linear(weight, torch.zeros(2))
    with torch.no_grad():
        shift = plain(images)[:, 1].max() + 0.75 * 0.05 * weight[1].abs().sum()
    model = Blind(linear(weight, torch.stack([shift, torch.zeros(())])))
    data, threat = (images, torch.zeros(40, dtype=torch.int64)), {"norm": "linf", "epsilon": 0.05}
    attacks = [{"name": "fast-autoattack", "runs": 0, "queries": 40}, "fgsm"]
    report = guard.evaluate(model, data, attacks=attacks, threat=threat, out=tmp_path / "run")  # type: ignore[operator]
    fast, fgsm = report.cells
    assert fgsm.undecided is None
    assert fast.undecided is not None
    assert 0 < fast.undecided <= round(40 * (fast.robust_accuracy or 0))
    text = f"fast-autoattack is an estimate. It left undecided {fast.undecided} of 40 images on none."
    assert text in (tmp_path / "run" / "report.md").read_text()  # type: ignore[operator]


def test_what_the_last_query_led_to_is_returned(make_victim: Make, curved: nn.Module, images: Tensor) -> None:
    """Under a budget that ends in its first part, fast-autoattack is worth what that part is."""
    labels, budget = curved(images).argmax(1), 3
    goal, threat = Goal(labels), ThreatModel(norm="linf", epsilon=0.3)
    fell = []
    for attack in (FastPGD(), FastAutoAttack()):
        victim = make_victim(curved, images, max_queries=budget)
        rng = Rng(0, torch.arange(8), (3, 4, 4))
        rng = rng.fold(0) if isinstance(attack, FastPGD) else rng
        fell.append(goal.reached(curved(attack.perturb(victim, images, goal, threat, rng))))
    assert torch.equal(fell[0], fell[1])
    assert fell[0].any()
