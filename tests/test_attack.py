"""The loop of every iterative attack: dropping, restarts, what it returns, and what it carries along."""

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from guard import Goal, IterativeAttack, Memory, MinimalAttack, Norm, Now, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
THREAT = ThreatModel(norm="linf", epsilon=0.5)


class Threshold(nn.Module):
    """Class 1 where the first value exceeds the second, else class 0. The third is never looked at."""

    def forward(self, points: Tensor) -> Tensor:
        flat = points.flatten(1)
        return torch.stack([flat[:, 1], flat[:, 0]], 1)


class Climb(IterativeAttack):
    """Adds 0.1 to the first value at each step; starts at the image, or 0.25 higher at each further restart."""

    name = "climb"
    seen: ClassVar[list[tuple[int, list[float]]]] = []

    def start(
        self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
    ) -> tuple[Tensor, Memory]:
        up = torch.zeros_like(images)
        up[:, 0, 0, 0] = 0.25 * restart
        return images + up, {"mark": images[:, 0, 0, 2].clone()}

    def move(self, now: Now, memory: Memory) -> Tensor:
        assert torch.equal(memory["mark"], now.images[:, 0, 0, 2])  # masked together with the batch
        assert len(now.goal) == len(now.logits) == len(now.gradient) == len(now.loss) == len(now.point)
        self.seen.append((now.step, memory["mark"].tolist()))
        up = torch.zeros_like(now.point)
        up[:, 0, 0, 0] = 0.1
        return now.point + up


@pytest.fixture(autouse=True)
def _forget() -> None:
    Climb.seen.clear()


def batch(*gaps: float) -> tuple[Tensor, Goal]:
    """Images (0, gap, mark): class 0, whose first value must climb by the gap."""
    images = torch.zeros(len(gaps), 1, 1, 3, dtype=torch.float64)
    images[:, 0, 0, 1] = torch.tensor(gaps)
    images[:, 0, 0, 2] = torch.arange(len(gaps)) / 10
    return images, Goal(torch.zeros(len(gaps), dtype=torch.int64))


def run(attack: IterativeAttack, make: Make, images: Tensor, goal: Goal, drop: bool = True) -> tuple[Tensor, Victim]:
    victim = make(Threshold(), images, drop=drop)
    rng = Rng(0, torch.arange(len(images)), tuple(images.shape[1:]))
    return attack.perturb(victim, images, goal, THREAT, rng), victim


def test_the_first_point_that_reached_the_goal_is_returned_and_its_image_dropped(make_victim: Make) -> None:
    images, goal = batch(0.05, 0.25, 0.9, 0.0)
    adversarial, victim = run(Climb(steps=4), make_victim, images, goal)
    assert adversarial[:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.3, 0.4, 0.0])
    assert victim.counts.forwards.tolist() == [2, 4, 4, 1]
    assert victim.counts.backwards.tolist() == [2, 4, 4, 1]
    marks = [[0.0, 0.1, 0.2], [0.1, 0.2], [0.1, 0.2], [0.2]]
    assert [step for step, _ in Climb.seen] == [0, 1, 2, 3]
    for (_, seen), expected in zip(Climb.seen, marks, strict=True):
        assert seen == pytest.approx(expected)


def test_without_dropping_the_last_point_is_returned(make_victim: Make) -> None:
    images, goal = batch(0.05, 0.25, 0.9, 0.0)
    adversarial, victim = run(Climb(steps=4), make_victim, images, goal, drop=False)
    assert adversarial[:, 0, 0, 0].tolist() == pytest.approx([0.4] * 4)
    assert victim.counts.forwards.tolist() == [4] * 4


def test_points_are_projected_after_each_step(make_victim: Make) -> None:
    images, goal = batch(0.9)
    adversarial, _ = run(Climb(steps=9), make_victim, images, goal)
    assert adversarial[0, 0, 0, 0].item() == pytest.approx(0.5)


def test_restarts_work_on_survivors_only(make_victim: Make) -> None:
    """Two steps a run. The second run starts at 0.25, the third at 0.5; in between one forward finds the survivors."""
    images, goal = batch(0.15, 0.3, 0.9)
    adversarial, victim = run(Climb(steps=2, restarts=3), make_victim, images, goal)
    assert adversarial[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.35, 0.5])
    # image 0: 2 steps + closing forward; image 1: 2 + 1, then dropped at its second point; image 2: 2 + 1, 2 + 1, 2
    assert victim.counts.forwards.tolist() == [3, 5, 8]
    assert victim.counts.backwards.tolist() == [2, 4, 6]


def test_no_forward_is_spent_once_all_have_reached_the_goal(make_victim: Make) -> None:
    class Choosy(Threshold):
        def forward(self, points: Tensor) -> Tensor:
            assert len(points), "an empty batch"
            return super().forward(points)

    images, goal = batch(0.05, 0.0)
    victim = make_victim(Choosy(), images)
    Climb(steps=4, restarts=3).perturb(victim, images, goal, THREAT, Rng(0, torch.arange(2), (1, 1, 3)))
    assert victim.counts.forwards.tolist() == [2, 1]


def test_without_dropping_the_restart_furthest_beyond_the_goal_wins(make_victim: Make) -> None:
    class Fall(Climb):
        """Each restart ends lower than the one before."""

        def start(
            self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, restart: int
        ) -> tuple[Tensor, Memory]:
            point, memory = super().start(victim, images, goal, threat, rng, 0)
            point[:, 0, 0, 0] = 0.2 if restart == 1 else 0.0
            return point, memory

    images, goal = batch(0.9, 0.05)
    adversarial, victim = run(Fall(steps=2, restarts=3), make_victim, images, goal, drop=False)
    assert adversarial[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.4])
    assert victim.counts.forwards.tolist() == [9, 9]


def test_targeted_goals_are_dropped_when_the_target_is_reached(make_victim: Make) -> None:
    images, _ = batch(0.15, 0.9)
    goal = Goal(torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64))
    adversarial, victim = run(Climb(steps=4), make_victim, images, goal)
    assert adversarial[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.4])
    assert victim.counts.forwards.tolist() == [3, 4]


def test_the_default_start_is_uniform_and_for_l1_the_image_first(make_victim: Make, images: Tensor) -> None:
    class Stay(IterativeAttack):
        name = "stay"

        def move(self, now: Now, memory: Memory) -> Tensor:
            return now.point

    goal, rng = Goal(torch.zeros(8, dtype=torch.int64)), Rng(0, torch.arange(8), (3, 4, 4))
    victim = make_victim(nn.Identity(), images)
    for norm in ("linf", "l2", "l1"):
        threat = ThreatModel(norm=norm, epsilon=0.2)
        first, second = (Stay().start(victim, images, goal, threat, rng.fold(n), n)[0] for n in range(2))
        assert torch.equal(first, images) == (norm == "l1")
        assert not torch.equal(second, images)
        assert not torch.equal(second, first)
        assert threat.contains(second, images).all()


def test_a_minimal_attack_is_projected_on_the_ball(make_victim: Make) -> None:
    class Jump(MinimalAttack):
        name = "jump"

        def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: Norm, rng: Rng) -> Tensor:
            return images + torch.tensor([0.1, 0.9]).view(2, 1, 1, 1).double()

    images, goal = batch(0.0, 0.0)
    adversarial = Jump().perturb(
        make_victim(Threshold(), images), images, goal, THREAT, Rng(0, torch.arange(2), (1, 1, 3))
    )
    torch.testing.assert_close((adversarial - images)[:, 0, 0, 0], torch.tensor([0.1, 0.5]).double())


def test_each_restart_starts_somewhere_else(make_victim: Make, images: Tensor) -> None:
    starts: list[Tensor] = []

    class Watch(IterativeAttack):
        name = "watch"

        def move(self, now: Now, memory: Memory) -> Tensor:
            starts.append(now.point)
            return now.point

    victim, goal = make_victim(nn.Flatten(), images, drop=False), Goal(torch.zeros(8, dtype=torch.int64))
    Watch(steps=1, restarts=3).perturb(victim, images, goal, THREAT, Rng(0, torch.arange(8), (3, 4, 4)))
    assert len(starts) == 3
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (starts[one] != starts[other]).flatten(1).any(1).all()
