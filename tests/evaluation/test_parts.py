"""What each member of a cascade of attacks did, from the victim's counts to the cell."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import guard
from guard import Attack, Cascade, Goal, Rng, ThreatModel, Victim

LINF = ThreatModel(norm="linf", epsilon=0.02)


class Step(Attack):
    """One step of a share of epsilon along the gradient's sign; asks `times` for it."""

    name = "step"
    share: float = 1
    times: int = 1

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        for _ in range(self.times):
            gradient, _, _ = victim.gradient(images, goal)
        return (images + self.share * threat.epsilon * gradient.sign()).clamp(0, 1)


class Two(Cascade):
    """Half a step, then a whole one; then half a step again, which finds nothing."""

    name = "two"

    def members(self, threat: ThreatModel) -> Sequence[tuple[str, Attack]]:
        return [("half", Step(share=0.5)), ("whole", Step(times=3)), ("again", Step(share=0.5, times=2))]


def test_members_break_what_the_closed_form_says(
    linear: nn.Module, images: Tensor, labels: Tensor, robust: Callable[[ThreatModel], float]
) -> None:
    half, whole = (round(300 * robust(ThreatModel(norm="linf", epsilon=epsilon))) for epsilon in (0.01, 0.02))
    assert 0 < whole < half < 270
    for _ in range(2):  # computed, then from the store
        cells = guard.evaluate(linear, (images, labels), attacks=[Two(), Step()], threat=LINF, batch_size=64).cells
        assert cells[1].parts == ()
        assert [(part.name, part.images, part.broke) for part in cells[0].parts] == [
            ("half", 270, 270 - half),
            ("whole", half, half - whole),
            ("again", whole, 0),
        ]
        assert [part.backwards_per_image for part in cells[0].parts] == [1, 3, 2]
        assert cells[0].robust_accuracy == whole / 300


def test_a_member_that_nothing_is_left_for_is_left_out(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    threat = ThreatModel(norm="linf", epsilon=0.6)
    with torch.no_grad():
        right = torch.where(linear(images).argmax(1) == labels)[0]
    (cell,) = guard.evaluate(linear, (images[right], labels[right]), attacks=[Two()], threat=threat).cells
    assert [(part.name, part.images, part.broke) for part in cell.parts] == [("half", 270, 270)]
