"""Noise: which draw it keeps, and what it asks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from guard import Goal, Registry, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Perturb = Callable[..., Tensor]


def test_noise_keeps_the_first_draw_that_works_and_counts_what_it_asked(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal, perturb: Perturb, registry: Registry
) -> None:
    threat = ThreatModel(norm="linf", epsilon=0.25)
    victim = make_victim(curved, images, access="logits")
    adversarial = perturb(registry.create("attack", {"name": "noise", "draws": 30}), victim, images, goal, threat)
    rng = Rng(0, torch.arange(8), (3, 4, 4))
    draws = [threat.random_start(images, rng) for _ in range(30)]
    reached = torch.stack([goal.reached(curved(draw)) for draw in draws])
    for row in range(8):
        first = int(reached[:, row].nonzero()[0]) if reached[:, row].any() else 29
        assert torch.equal(adversarial[row], draws[first][row])
        assert victim.counts.forwards[row] == first + 1
    assert len(set(victim.counts.forwards.tolist())) > 2, "some must find one early, some late"


def test_noise_stops_where_its_budget_ends(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal, perturb: Perturb, registry: Registry
) -> None:
    victim = make_victim(curved, images, access="logits", max_queries=4)
    perturb(registry.create("attack", "noise"), victim, images, goal, ThreatModel(norm="linf", epsilon=0.01))
    assert victim.counts.forwards.max() == 4
