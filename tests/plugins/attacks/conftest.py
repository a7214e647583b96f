"""What the tests of several attacks share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import guard
from guard import LearnedAttack, Registry, ThreatModel
from guard.rng import seeded


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
def digits(registry: Registry) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier of the digits, 400 images that attacks may learn on, and 200 others."""
    source = registry.create("dataset", "digits")
    train, test = source.load("train"), source.load("test")
    with seeded(0, torch.device("cpu")):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(train.images), train.labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    assert (model(test.images).argmax(1) == test.labels).double().mean() > 0.9
    return model.eval(), train.images[:400], test.images[:200]
