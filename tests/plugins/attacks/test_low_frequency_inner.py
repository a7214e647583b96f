"""Low-frequency: which attacks may move the perturbation, and what these are shown of the victim."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guard_plugins.attacks.bands import mask
from guard_plugins.attacks.low_frequency import LowFrequency
from torch import Tensor, nn

import guard
from guard import Attack, Goal, InputError, Registry, Rng, ThreatModel, Victim, dct2, idct2

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Perturb = Callable[..., Tensor]
THREATS = [
    ThreatModel(norm="linf", epsilon=0.2),
    ThreatModel(norm="l2", epsilon=0.8),
    ThreatModel(norm="l1", epsilon=4),
]
EACH_NORM = pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
WIDE = ThreatModel(norm="linf", epsilon=1)


class Still(Attack):
    """An attack that notes what it is given and returns points of its own."""

    name = "still"
    points: Any = None

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        given.update(victim=victim, images=images, threat=threat)
        return images if self.points is None else self.points  # type: ignore[no-any-return]


given: dict[str, Any] = {}


@pytest.mark.parametrize("threat", [*THREATS, WIDE], ids=str)
def test_the_inner_attack_meets_grey_images_and_the_bound(
    threat: ThreatModel, curved: nn.Module, images: Tensor, make_victim: Make, perturb_inside: Perturb
) -> None:
    goal = Goal(torch.zeros(8, dtype=torch.int64))
    for epsilon in (None, 0.03):
        perturb_inside(LowFrequency(attack=Still(), parameter_epsilon=epsilon), make_victim(curved, images),
               images, goal, threat)  # fmt: skip
        assert torch.equal(given["images"], torch.full_like(images, 0.5))
        assert given["threat"] == ThreatModel(norm=threat.norm, epsilon=epsilon or threat.epsilon)
        assert torch.equal(given["victim"].logits(given["images"]), curved(images)), "grey stands for the image"


@EACH_NORM
def test_the_gradient_is_masked_and_leads_no_clipped_value_further_out(
    threat: ThreatModel, curved: nn.Module, images: Tensor, make_victim: Make, make_rng: Callable[..., Rng]
) -> None:
    """Else it is the victim's at the image that it sees; in l2 and l1 only [0, 1] clips single values."""
    goal, point = (
        Goal(torch.zeros(8, dtype=torch.int64)),
        torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(3)).double(),
    )
    LowFrequency(attack=Still(), dimension=3).perturb(
        make_victim(curved, images), images, goal, threat, make_rng(images)
    )
    kept = mask("low", 3, images, make_rng(images))
    gradient, loss, _ = given["victim"].gradient(point, goal)
    moved = images + idct2(kept * dct2(point - 0.5))
    seen = threat.project(moved, images).requires_grad_()
    torch.testing.assert_close(F.cross_entropy(curved(seen), goal.labels, reduction="none"), loss)
    (there,) = torch.autograd.grad(F.cross_entropy(curved(seen), goal.labels, reduction="sum"), seen)
    clipped = moved - (seen if threat.norm == "linf" else moved.clamp(0, 1))
    outwards = (clipped * there > 0) & (clipped.abs() > 1e-12)
    assert outwards.any()
    assert (outwards != (clipped.abs() > 1e-12)).any(), "some lead back in"
    torch.testing.assert_close(gradient, idct2(kept * dct2(there * ~outwards)))


@pytest.mark.parametrize("name", ["square", "noise", "deepfool", "cw", "fab", "autoattack", "simba-dct"])
def test_what_follows_no_gradient_inside_a_ball_is_refused(name: str, registry: Registry) -> None:
    with pytest.raises(InputError) as caught:
        registry.create("attack", {"name": "low-frequency", "attack": name})
    assert str(caught.value) == (
        f"attack 'low-frequency' moves by the gradients of one attack inside a ball; '{name}' is none such. "
        f"Use bim, mi-fgsm, pgd or apgd"
    )


def test_an_attack_that_does_not_work_in_the_norm_is_not_applicable(curved: nn.Module, images: Tensor) -> None:
    class Flat(Still):
        name = "flat"
        norms = frozenset({"linf"})

    with pytest.raises(InputError) as caught:
        guard.craft(LowFrequency(attack=Flat()), curved, images, torch.zeros(8, dtype=torch.int64), THREATS[1])
    assert str(caught.value) == "attack 'low-frequency: flat' works in linf, not in l2. Use one of its norms"


def test_a_bound_that_is_none_is_refused(
    curved: nn.Module, images: Tensor, make_victim: Make, perturb_inside: Perturb
) -> None:
    goal, victim = Goal(torch.zeros(8, dtype=torch.int64)), make_victim(curved, images)
    with pytest.raises(InputError, match=r"^parameter_epsilon of attack 'low-frequency': .* 2/255\?$"):
        perturb_inside(LowFrequency(parameter_epsilon=2), victim, images, goal, WIDE)


def test_it_goes_through_a_config_and_back_and_costs_what_its_attack_costs(registry: Registry) -> None:
    spec = {"name": "low-frequency", "attack": {"name": "pgd", "steps": 7}, "parameter_epsilon": "8/255"}
    made = registry.create("attack", spec)
    assert made.cost(10) == made.attack.cost(10)
    assert made.parameter_epsilon == 8 / 255
    assert registry.create("attack", made.model_dump(mode="json")) == made


def test_a_budget_is_honoured(curved: nn.Module, images: Tensor, make_victim: Make, perturb_inside: Perturb) -> None:
    victim, goal = make_victim(curved, images, max_queries=3, drop=False), Goal(torch.zeros(8, dtype=torch.int64))
    perturb_inside(LowFrequency(), victim, images, goal, THREATS[0])
    assert victim.counts.forwards.tolist() == [3] * 8
