"""What an attack returns is checked before anything is scored."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from guard import Attack, ContractError, Goal, Rng, ThreatModel, Victim
from guard.evaluation.crafting import craft
from guard.evaluation.network import Network

LINF = ThreatModel(norm="linf", epsilon=8 / 255)
HINT = "End perturb() with threat.project(adversarial, images)."


class Does(Attack):
    """Returns what a function makes of the images."""

    name = "does"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        return ACTION[0](victim, images, goal)


ACTION: list[Callable[[Victim, Tensor, Goal], Tensor]] = []


def run(
    action: Callable[[Victim, Tensor, Goal], Tensor], threat: ThreatModel = LINF, net: nn.Module | None = None
) -> Tensor:
    ACTION[:] = [action]
    net = net or nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, index = torch.full((4, 3, 2, 2), 0.5), torch.arange(4)
    goal = Goal(torch.tensor([0, 1, 2, 0]))
    who = "attack 'does' from 'mine 1.0'"
    return craft(Does(), Network(net), images, goal, threat, index=index, seed=0, drop=True, who=who).adversarial


def nan_in_one(victim: Victim, images: Tensor, goal: Goal) -> Tensor:
    images[1, 0, 0, 0] = float("nan")
    return images


def raises(victim: Victim, images: Tensor, goal: Goal) -> Tensor:
    raise KeyError("lost\nand found")


def in_place(victim: Victim, images: Tensor, goal: Goal) -> Tensor:
    images += 0.2  # the caller's images must not move with it
    return images


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (lambda v, x, g: x + 0.0471, f"moved a pixel by 0.0471 (12/255); the linf budget is 0.0314 (8/255). {HINT}"),
        (lambda v, x, g: x + 0.6, f"left the pixel range [0, 1]: its images reach from 1.1 to 1.1. {HINT}"),
        (nan_in_one, "returned NaN or infinity in 1 of 4 images"),
        (lambda v, x, g: x[:3], "returned shape (3, 3, 2, 2) for images of (4, 3, 2, 2)"),
        (lambda v, x, g: x.double(), "returned torch.float64 on cpu for images of torch.float32 on cpu"),
        (lambda v, x, g: x.to("meta"), "returned torch.float32 on meta for images of torch.float32 on cpu"),
        (lambda v, x, g: None, "returned NoneType, not a tensor. Return adversarial images"),
        (in_place, f"moved a pixel by 0.2000 (51/255); the linf budget is 0.0314 (8/255). {HINT}"),
    ],
)
def test_a_violation_is_an_error_with_its_owner(action: Callable[..., Tensor], text: str) -> None:
    with pytest.raises(ContractError) as caught:
        run(action)
    assert str(caught.value) == f"attack 'does' from 'mine 1.0' {text}"


def test_a_crash_is_an_error_with_its_place() -> None:
    with pytest.raises(ContractError) as caught:
        run(raises)
    text = str(caught.value)
    assert text.startswith("attack 'does' from 'mine 1.0' raised KeyError: 'lost\\nand found' (test_crafting.py:")
    assert "\n" not in text


def test_a_gradient_of_nan_is_an_error_though_sign_hides_it() -> None:
    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1)[:, :3] - 0.5).abs().sqrt()  # the slope at 0 is infinite times 0

    def steps(victim: Victim, images: Tensor, goal: Goal) -> Tensor:
        gradient, _, _ = victim.gradient(images, goal)
        assert (gradient.sign() == 0).any()  # torch.sign(NaN) is 0 or NaN: either way nobody would notice
        return images

    with pytest.raises(ContractError, match="met gradients with NaN or infinity for 4 of 4 images"):
        run(steps, net=Nan())


def test_what_is_inside_passes_in_every_norm() -> None:
    assert torch.equal(run(lambda v, x, g: x + 8 / 255), torch.full((4, 3, 2, 2), 0.5 + 8 / 255))
    for norm in ("l2", "l1"):
        run(lambda v, x, g: x + 0.1 / 12, ThreatModel(norm=norm, epsilon=0.1 + 1e-7))  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"moved 1\.2000; the l1 budget is 0\.1"):
        run(lambda v, x, g: x + 0.1, ThreatModel(norm="l1", epsilon=0.1))


def test_the_model_is_put_back_as_it_was_even_after_a_crash() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    net[1].bias.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = []

    def look(victim: Victim, images: Tensor, goal: Goal) -> Tensor:
        modes.append([module.training for module in net.modules()])
        victim.gradient(images, goal)
        torch.rand(3)
        raise ValueError("stop")

    before = torch.random.get_rng_state()
    with pytest.raises(ContractError):
        run(look, net=net)
    assert modes == [[False] * 5]
    assert all(module.training for module in net.modules())
    assert [parameter.requires_grad for parameter in net.parameters()] == [True, False, True, True]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in net.parameters())
