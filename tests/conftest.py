"""Toy models and oracles that several test files share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guard import Data, Registry, Rng, Victim
from guard.rng import seeded

torch.set_num_threads(1)


class Linear(nn.Module):
    """Logits weight @ x + bias. Sums per row, so that a row's logits are the same bits in any batch."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1)[:, None] * self.weight).sum(2) + self.bias


class Curved(nn.Module):
    """A small smooth network with curvature, in float64, for images (3, 4, 4) and 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.hidden = Linear(torch.randn(8, 48, generator=generator).double() / 4, torch.zeros(8).double())
        self.activation = nn.ReLU(inplace=True)
        self.out = Linear(torch.randn(4, 8, generator=generator).double(), torch.zeros(4).double())

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.activation(self.hidden(images - 0.5) + 0.3))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUARD_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("GUARD_TRACE_PLUGINS", raising=False)


@pytest.fixture
def global_generator_untouched() -> Iterator[None]:
    """No draw of guard's may come from torch's global generator."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator was used"


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def linear() -> Callable[..., nn.Module]:
    """linear(weight (K, D), bias (K,)) -> a linear classifier."""
    return Linear


@pytest.fixture
def curved() -> nn.Module:
    return Curved()


@pytest.fixture
def images() -> Tensor:
    """Eight images (3, 4, 4) in float64; some of their values at 0 and at 1."""
    values = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return (values * 1.2 - 0.1).clamp(0, 1)


@pytest.fixture
def make_rng() -> Callable[..., Rng]:
    """make_rng(images, seed=0): keyed by the position in `images`, or by `index`."""

    def make(images: Tensor, seed: int = 0, index: Tensor | None = None, stream: int = 0) -> Rng:
        return Rng(seed, torch.arange(len(images)) if index is None else index, tuple(images.shape[1:]), stream)

    return make


@pytest.fixture
def make_victim(make_rng: Callable[..., Rng]) -> Callable[..., Victim]:
    """make_victim(model, images, index=None, **settings of Victim)."""

    def make(model: nn.Module, images: Tensor, index: Tensor | None = None, **settings: object) -> Victim:
        return Victim(model, images, make_rng(images, index=index, stream=1), **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def linear_optimum() -> Callable[[str, np.ndarray, np.ndarray, float], np.ndarray]:
    """The point that maximises <gradient, point> over the ball around a vector and [0, 1] together, in closed form
    (linf), by a fractional knapsack (l1), or by bisection on the multiplier (l2)."""

    def optimum(norm: str, gradient: np.ndarray, image: np.ndarray, epsilon: float) -> np.ndarray:
        room = np.where(gradient > 0, 1 - image, np.where(gradient < 0, image, 0))
        size = np.abs(gradient)
        if norm == "linf":
            step = np.minimum(room, epsilon)
        elif norm == "l1":
            step, left = np.zeros_like(room), epsilon
            for place in np.argsort(-size):
                step[place] = min(room[place], left)
                left -= step[place]
        elif np.linalg.norm(room) <= epsilon:
            step = room
        else:
            low, high = 0.0, float(np.max(room[size > 0] / size[size > 0]))
            for _ in range(200):
                middle = (low + high) / 2
                inside = np.linalg.norm(np.minimum(middle * size, room)) <= epsilon
                low, high = (middle, high) if inside else (low, middle)
            step = np.minimum(low * size, room)
        return image + np.sign(gradient) * step

    return optimum


@pytest.fixture(scope="session")
def digits_network(registry: Registry) -> tuple[nn.Module, Data, Data]:
    """A linear classifier of the digits, what it was trained on, and test images."""
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
    return model.eval(), train, test


@pytest.fixture(scope="session")
def quickstart_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for what is run from the quickstart's config, so that its networks are trained once."""
    return tmp_path_factory.mktemp("quickstart-cache")
