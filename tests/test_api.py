"""The public functions: what they take, what they refuse, and that `craft` makes what `evaluate` scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

import guard
from guard import Attack, Goal, InputError, Rng, ThreatModel, Victim

LINF = ThreatModel(norm="linf", epsilon=0.1)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)).train()


@pytest.fixture
def labels(net: nn.Module, images: Tensor) -> Tensor:
    with guard.held(net), torch.no_grad():
        answers: Tensor = net(images.float()).argmax(1)
    return answers


class OnlyL2(Attack):
    """Works in l2."""

    name = "only-l2"
    norms = frozenset({"l2"})

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        return images


def test_craft_makes_what_evaluate_scores(net: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    attack = {"name": "pgd", "steps": 3}
    data = (images.float(), labels)
    guard.evaluate(net, data, attacks=[attack], threat=LINF, out=tmp_path / "run", keep_images=True)
    with np.load(tmp_path / "run" / "images" / "pgd.npz") as saved:
        kept = torch.from_numpy(saved["adversarial"])
    assert torch.equal(guard.craft(attack, net, *data, LINF), kept)
    assert net.training


def test_craft_is_keyed_by_index_and_exact_in_float64(curved: nn.Module, images: Tensor) -> None:
    labels, place = torch.zeros(8).long(), torch.tensor([7, 3, 1])
    whole = guard.craft("pgd", curved, images, labels, LINF, drop=False)
    assert whole.dtype == torch.float64
    for size in (1, 3, 8):
        part = guard.craft("pgd", curved, images[place], labels[place], LINF, drop=False, index=place, batch_size=size)
        assert torch.equal(part, whole[place])
    other = guard.craft("pgd", curved, images, labels, LINF, drop=False, seed=1)
    assert not torch.equal(other, whole)


def test_craft_towards_targets(curved: nn.Module, images: Tensor) -> None:
    labels, targets = torch.zeros(8).long(), torch.full((8,), 2)
    wide = ThreatModel(norm="linf", epsilon=1)
    with torch.no_grad():
        towards = curved(guard.craft("pgd", curved, images, labels, wide, targets=targets)).argmax(1)
        away = curved(guard.craft("pgd", curved, images, labels, wide)).argmax(1)
    assert (towards == 2).sum() >= 6
    assert (away != 0).all()


class LabelsOnly(OnlyL2):
    """Works in all norms, and asks for labels."""

    name = "labels-only"
    norms = frozenset({"linf", "l2", "l1"})
    access = "labels"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"index": torch.arange(7)}, "index is int64 of shape (7,) for 8 images. Give int64 of shape (8,)"),
        ({"index": torch.arange(8.0)}, "index is float32 of shape (8,) for 8 images. Give int64 of shape (8,)"),
        ({"index": torch.arange(8) - 1}, "index reaches from -1 to 6. Give numbers from 0"),
        ({"targets": torch.arange(8)}, "targets reaches from 0 to 7. Give numbers from 0 to 3"),
        (
            {"targets": torch.zeros(8, 1).long()},
            "targets is int64 of shape (8, 1) for 8 images. Give int64 of shape (8,)",
        ),
        (
            {"labels": torch.arange(8)},
            "labels reach from 0 to 7; there are 4 classes, 0 to 3. Give labels that count from 0",
        ),
        ({"attack": OnlyL2()}, "attack 'only-l2' works in l2, not in linf. Use one of its norms"),
        (
            {"images": torch.zeros(3, 4, 4)},
            "images are float32 of shape (3, 4, 4). Give float32 images of shape (N, C, H, W)",
        ),
    ],
    ids=str,
)
def test_craft_refuses_in_one_line(change: dict[str, Any], text: str, curved: nn.Module, images: Tensor) -> None:
    given = {"attack": "fgsm", "model": curved, "images": images, "labels": torch.zeros(8).long(), "threat": LINF}
    with pytest.raises(InputError) as caught:
        guard.craft(**(given | change))
    assert str(caught.value) == text


def test_craft_says_what_the_model_does_not_take(curved: nn.Module, images: Tensor) -> None:
    with pytest.raises(InputError, match="model 'Curved' does not take float64 images of shape "):
        guard.craft("fgsm", curved, images[:, :, :3], torch.zeros(8).long(), LINF)


def test_craft_on_a_predictor_needs_an_attack_that_asks_less(images: Tensor) -> None:
    model = guard.model(lambda arrays: np.zeros(len(arrays), int), access="labels", num_classes=2)
    with pytest.raises(InputError, match="attack 'fgsm' needs gradients, and the model gives labels only"):
        guard.craft("fgsm", model, images, torch.zeros(8).long(), LINF)
    assert guard.craft(LabelsOnly(), model, images, torch.zeros(8).long(), LINF).shape == images.shape


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """A data set without places."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.pairs = list(zip(images, labels, strict=True))

    def __iter__(self) -> Any:
        return iter(self.pairs)


def test_what_counts_as_data(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    images = images.float()
    kinds = {
        "arrays": (images.numpy(), labels.numpy()),
        "lists": (images, labels.tolist()),
        "learning": (images.clone().requires_grad_(), labels.int()),
        "stream": DataLoader(Stream(images, labels), batch_size=3),
        "loader": DataLoader(TensorDataset(images, labels), batch_size=3),
    }
    found = {
        name: guard.evaluate(net, data, attacks=["fgsm"], threat=LINF).cells[0].robust_accuracy
        for name, data in kinds.items()
    }
    assert len(set(found.values())) == 1, found


def test_a_sampler_of_any_kind_shuffles(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    sampler = WeightedRandomSampler([1.0] * 8, 8)
    loader = DataLoader(TensorDataset(images.float(), labels), sampler=sampler)
    with pytest.raises(InputError, match="the DataLoader shuffles"):
        guard.evaluate(net, loader, attacks=["fgsm"], threat=LINF)


def test_classes_are_counted_in_both_splits(images: Tensor) -> None:
    test, train = torch.arange(8) % 3, torch.arange(8) % 5
    images = torch.nn.functional.interpolate(images[:, :1].float(), 8)
    training = {"epochs": 1, "batch_size": 8}
    report = guard.evaluate(
        "small-cnn", (images, test), train_data=(images, train), attacks=["fgsm"], threat=LINF, training=training
    )
    assert "chance (20.0%)" in report.cells[0].reason
