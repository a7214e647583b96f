"""What does not fit memory is computed in halves, with the same result."""

import pytest
import torch
from torch import Tensor, nn

from guard import Attack, ContractError, Goal, Rng, ThreatModel, Victim
from guard.evaluation.crafting import craft
from guard.evaluation.memory import halving
from guard.evaluation.network import Network


class Tight(nn.Module):
    """Has no memory for more than three images at once."""

    def __init__(self, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.error, self.sizes = error, []  # type: ignore[var-annotated]

    def forward(self, points: Tensor) -> Tensor:
        self.sizes.append(len(points))
        if len(points) > 3:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return torch.stack([points.flatten(1).sum(1), points.flatten(1).mean(1)], 1)


class Step(Attack):
    """One step and a draw."""

    name = "step"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        gradient, _, _ = victim.gradient(images, goal)
        return threat.project(images + 0.1 * gradient.sign() * rng.uniform(), images)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_batch_that_does_not_fit_is_attacked_and_scored_in_halves(error: type[Exception]) -> None:
    images, goal = torch.rand(10, 1, 2, 2), Goal(torch.zeros(10, dtype=torch.int64))
    threat, index = ThreatModel(norm="linf", epsilon=0.1), torch.arange(10)
    network, roomy = Network(Tight(error)), Network(Tight(error))
    whole = craft(Step(), network, images, goal, threat, index=index, seed=0, drop=True, who="it")
    single = [
        craft(Step(), roomy, images[i], goal[i], threat, index=index[i], seed=0, drop=True, who="it").adversarial
        for i in index.split(2)
    ]
    assert torch.equal(whole.adversarial, torch.cat(single))
    assert whole.forwards.tolist() == whole.backwards.tolist() == [1] * 10
    rng = Rng(0, index, (1, 2, 2))
    assert torch.equal(
        network.logits(images, rng), torch.cat([roomy.logits(images[i], rng[i]) for i in index.split(2)])
    )


def test_one_image_that_does_not_fit_is_an_error_and_others_are_raised_at_once() -> None:
    with pytest.raises(ContractError, match="the model raised OutOfMemoryError"):
        Network(_Never()).logits(torch.zeros(4, 1, 2, 2), Rng(0, torch.arange(4), (1, 2, 2)))
    seen = []

    def wrong(rows: Tensor) -> None:
        seen.append(len(rows))
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        halving(wrong, torch.arange(8))
    assert seen == [8]


class _Never(nn.Module):
    def forward(self, points: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")
