"""FAB: what it asks of a victim, where it stops, and that an image does not depend on its batch."""

from collections.abc import Callable

import pytest
import torch
from guard_plugins.attacks.fab import FAB
from torch import Tensor, nn

from guard import Goal, Norm, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
MakeRng = Callable[..., Rng]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 2])
def test_an_image_does_not_depend_on_its_batch(
    curved: nn.Module, images: Tensor, make_rng: MakeRng, make_victim: Make, norm: Norm, targets: int
) -> None:
    attack = FAB(steps=4, restarts=2, targets=targets)
    labels = curved(images).argmax(1)
    threat = ThreatModel(
        norm=norm, epsilon={"linf": 0.03, "l2": 0.15, "l1": 0.4}[norm]
    )  # some fall at once, some never

    def results(size: int, drop: bool) -> Tensor:
        parts = []
        for rows in torch.arange(len(images)).flip(0).split(size):
            victim = make_victim(curved, images[rows], index=rows, drop=drop)
            rng = make_rng(images[rows], index=rows)
            parts.append(attack.perturb(victim, images[rows], Goal(labels[rows]), threat, rng))
        return torch.cat(parts).flip(0)

    for drop in (True, False):
        together = results(8, drop)
        assert torch.equal(results(1, drop), together)
        assert torch.equal(results(3, drop), together)
        assert threat.contains(together, images).all()


def test_a_search_that_may_stop_stops_inside_the_ball(
    curved: nn.Module, images: Tensor, make_rng: MakeRng, make_victim: Make
) -> None:
    goal, threat = Goal(curved(images).argmax(1)), ThreatModel(norm="l2", epsilon=2.0)
    stopping, full = make_victim(curved, images), make_victim(curved, images, drop=False)
    rng = make_rng(images)
    found = FAB().perturb(stopping, images, goal, threat, rng)
    assert goal.reached(curved(found)).all()
    assert (threat.distance(found, images) < 2).all()
    nearer = FAB().perturb(full, images, goal, threat, rng)
    assert goal.reached(curved(nearer)).all()
    assert (stopping.counts.forwards < 20).all()
    assert (full.counts.forwards > 200).all()
    assert (threat.distance(nearer, images) < threat.distance(found, images)).all()


class Flat(nn.Module):
    """Always class 0, at any image; its gradient is 0."""

    def forward(self, points: Tensor) -> Tensor:
        return points.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.5, 0.0], dtype=points.dtype)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [FAB(steps=5), FAB(steps=5, targets=9, restarts=2)])
def test_without_a_gradient_nothing_moves_and_the_stated_cost_is_asked(
    images: Tensor, make_rng: MakeRng, make_victim: Make, norm: Norm, attack: FAB
) -> None:
    goal, threat = Goal(torch.zeros(8, dtype=torch.int64)), ThreatModel(norm=norm, epsilon=0.1)
    victim = make_victim(Flat(), images)
    assert torch.equal(attack.perturb(victim, images, goal, threat, make_rng(images)), images)
    cost = attack.cost(num_classes=3)
    assert (victim.counts.backwards == cost.backwards).all()
    assert (victim.counts.forwards == cost.forwards - 5).all()  # the last search has nothing to start from


def test_a_search_that_finds_points_asks_no_more_than_the_stated_cost(
    curved: nn.Module, images: Tensor, make_rng: MakeRng, make_victim: Make
) -> None:
    attack, goal = FAB(steps=10, targets=2), Goal(curved(images).argmax(1))
    victim = make_victim(curved, images, drop=False)
    attack.perturb(victim, images, goal, ThreatModel(norm="l2", epsilon=1e-6), make_rng(images))
    cost = attack.cost(num_classes=4)
    assert (victim.counts.forwards == cost.forwards).all()
    assert (victim.counts.backwards == cost.backwards).all()


@pytest.mark.parametrize("queries", [1, 4, 30, 43])
def test_a_budget_is_kept(
    curved: nn.Module, images: Tensor, make_rng: MakeRng, make_victim: Make, queries: int
) -> None:
    goal, threat = Goal(curved(images).argmax(1)), ThreatModel(norm="l2", epsilon=1e-6)
    victim = make_victim(curved, images, max_queries=queries)
    FAB(steps=10, targets=2).perturb(victim, images, goal, threat, make_rng(images))
    assert (victim.counts.forwards <= queries).all()
    assert (victim.counts.forwards >= queries - 5).all()


def test_a_nearest_point_still_counts_in_a_batch_of_another_size(make_victim: Make) -> None:
    """The last search ends beside the boundary; a forward of one image rounds differently from that of many."""
    generator = torch.Generator().manual_seed(0)
    conv, linear = nn.utils.skip_init(nn.Conv2d, 3, 16, 3, padding=1), nn.utils.skip_init(nn.Linear, 1024, 5)
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear).requires_grad_(False)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    images = torch.rand(64, 3, 8, 8, generator=generator)
    goal = Goal(net(images).argmax(1))
    rng = Rng(0, torch.arange(64), (3, 8, 8))
    points = FAB(steps=15).nearest(make_victim(net, images), images, goal, "l2", rng)
    found = goal.reached(net(points))
    alone = torch.cat([goal[i].reached(net(points[i])) for i in torch.arange(64).split(1)])
    assert found.sum() > 32
    assert torch.equal(found, alone)
