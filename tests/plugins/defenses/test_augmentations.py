"""What holds for every augmentation of training images."""

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

import guard
from guard import Defense, Registry

NAMES = [
    "shape-bias",
    "gaussian-augmentation",
    "style-mixing",
    "amplitude-mixing",
    "random-convolution",
    "edge-blending",
]
LABELS = torch.arange(12) % 4
SOURCE = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    )
"""


@pytest.fixture(params=NAMES)
def defense(request: pytest.FixtureRequest, registry: Registry) -> Defense:
    return registry.create("defense", request.param)


def pictures(channels: int = 3, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(12, channels, height, width, generator=Generator().manual_seed(3))


def labels(defense: Defense) -> Tensor:
    return torch.eye(4)[LABELS] if defense.mixes_labels else LABELS


def augment(defense: Defense, images: Tensor, targets: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    targets = labels(defense)[: len(images)] if targets is None else targets
    return defense.augment(images, targets, Generator().manual_seed(seed))


def test_all_of_them_are_here(registry: Registry) -> None:
    acting = {found.name for found in registry if issubclass(found, Defense) and found.overrides("augment")}
    assert acting == set(NAMES)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("sides", [(8, 8), (7, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_stay_images(defense: Defense, channels: int, sides: tuple[int, int], dtype: torch.dtype) -> None:
    images = pictures(channels, *sides).round().to(dtype)  # black and white: whatever overshoots leaves the range
    before = images.clone()
    augmented, targets = augment(defense, images)
    assert augmented.shape == images.shape
    assert augmented.dtype == dtype
    assert 0 <= augmented.min() <= augmented.max() <= 1
    assert torch.equal(images, before)
    assert not torch.equal(augmented, images)
    assert targets.shape == labels(defense).shape
    assert targets.dtype == labels(defense).dtype


@pytest.mark.usefixtures("global_generator_untouched")
def test_all_follows_from_the_generator(defense: Defense) -> None:
    soft = torch.eye(4)[LABELS]
    first, other = augment(defense, pictures(), soft, seed=5), augment(defense, pictures(), soft, seed=6)
    again = augment(defense, pictures(), soft, seed=5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_each_image_has_its_own_draws(defense: Defense) -> None:
    images = pictures()[:1].expand(12, -1, -1, -1) * torch.linspace(0.5, 1, 12).view(-1, 1, 1, 1)
    changes = (augment(defense, images)[0] - images).flatten(1)
    assert len(changes.round(decimals=4).unique(dim=0)) >= 5


def test_a_single_image_is_augmented_too(defense: Defense) -> None:
    augmented, targets = augment(defense, pictures()[:1])
    assert augmented.shape == (1, 3, 8, 8)
    assert augmented.isfinite().all()
    assert torch.equal(targets, labels(defense)[:1])


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_a_network_learns_from_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Two epochs on digits; chance is 10 %."""
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path))
    (tmp_path / "source.py").write_text(SOURCE)
    defenses = ["feature-style-mixing", [*NAMES[2:], "feature-style-mixing", "fgsm-rs"]]
    report = guard.evaluate(
        {"name": f"{tmp_path}/source.py:net", "weights": "none"},
        "digits",
        attacks=["fgsm"],
        defenses=defenses,
        threat=guard.ThreatModel(norm="linf", epsilon=0.05),
        training={"epochs": 2, "batch_size": 64, "lr": 0.2, "precision": precision},
        limit=100,
    )
    found = {cell.defense: (cell.status, cell.clean_accuracy) for cell in report.cells}
    assert len(found) == 2
    assert {name: each for name, each in found.items() if each[0] != "VALID" or each[1] < 0.3} == {}
