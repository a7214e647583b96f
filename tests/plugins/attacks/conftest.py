"""What the tests of several attacks share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Attack, Data, Goal, LearnedAttack, Rng, ThreatModel, Victim


class Small(nn.Module):
    """Two convolutions and a linear layer in float64, for images (3, 4, 4); the activation is in place."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.utils.skip_init(nn.Conv2d, 3, 5, 3, padding=1).double()
        self.activation = activation or nn.ReLU(inplace=True)
        self.second = nn.utils.skip_init(nn.Conv2d, 5, 6, 3, padding=1, stride=2).double()
        self.out = nn.utils.skip_init(nn.Linear, 6, 4).double()
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.out(self.second(self.activation(self.first(images - 0.5))).mean((2, 3)))
        return logits


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LearnedAttack]:
    """fit(attack, model, images, labels, threat, **settings) -> the attack, which has learned on these images alone, as
    precisely as they are."""
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))

    def learn(
        attack: Any, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, **settings: Any
    ) -> LearnedAttack:
        precision = "float64" if images.dtype == torch.float64 else "float32"
        return guard.fit(attack, model, (images, labels), threat=threat, precision=precision, **settings)

    return learn


@pytest.fixture(scope="session")
def digits(digits_network: tuple[nn.Module, Data, Data]) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier of the digits, 400 images that attacks may learn on, and 200 others."""
    model, train, test = digits_network
    return model, train.images[:400], test.images[:200]


@pytest.fixture
def goal(curved: nn.Module, images: Tensor) -> Goal:
    """Labels as the model sees the images, one of them wrong."""
    labels = curved(images).argmax(1)
    labels[3] = (labels[3] + 1) % 4
    return Goal(labels)


@pytest.fixture
def perturb(make_rng: Callable[..., Rng]) -> Callable[..., Tensor]:
    """perturb(attack, victim, images, goal, threat, seed=0, index=None) -> what the attack returns."""

    def run(attack: Attack, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, **rng: Any) -> Tensor:
        return attack.perturb(victim, images, goal, threat, make_rng(images, **rng))

    return run


@pytest.fixture
def perturb_inside(perturb: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As `perturb`; the points lie in the ball and in [0, 1], as precise as the images."""

    def run(attack: Attack, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, seed: int = 0) -> Tensor:
        adversarial = perturb(attack, victim, images, goal, threat, seed=seed)
        assert adversarial.dtype == images.dtype
        assert threat.contains(adversarial, images).all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        return adversarial

    return run


@pytest.fixture
def small() -> Callable[..., nn.Module]:
    """small(activation=a ReLU in place) -> a small convolutional network."""
    return Small
