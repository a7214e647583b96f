"""Small models whose robust accuracy is known exactly."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from guard import ThreatModel


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GUARD_CACHE", str(folder))
    return folder


class Linear(nn.Module):
    """Two classes, logits [0, <w, x> + b]."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = bias
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.fixture
def linear() -> Linear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 4, 4, generator=generator)
    return Linear(weight, -0.5 * float(weight.sum()))


@pytest.fixture
def images() -> Tensor:
    """Pixels in [0.3, 0.7], so that a ball of radius 0.3 in linf does not meet the range."""
    return 0.3 + 0.4 * torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(linear: Linear, images: Tensor) -> Tensor:
    """What the model answers, but for every tenth image."""
    with torch.no_grad():
        answers = linear(images).argmax(1)
    answers[::10] = 1 - answers[::10]
    return answers


@pytest.fixture
def robust(linear: Linear, images: Tensor, labels: Tensor):  # type: ignore[no-untyped-def]
    """The exact robust accuracy of the linear model: its margin over the dual norm of its weight."""

    def accuracy(threat: ThreatModel) -> float:
        with torch.no_grad():
            score = linear(images)[:, 1] * (2 * labels - 1)
        weight = linear.weight.detach().flatten()
        dual = {"linf": weight.abs().sum(), "l2": weight.norm(), "l1": weight.abs().max()}[threat.norm]
        return float((score > threat.epsilon * dual).double().mean())

    return accuracy
