"""guard.train and guard.load with what a program holds."""

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

import guard

THREAT = guard.ThreatModel(norm="linf", epsilon=0.05)
SHORT = {"epochs": 3, "batch_size": 16, "lr": 0.2}


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    images = torch.rand(60, 1, 4, 4, generator=Generator().manual_seed(0))
    return images, (images.mean((1, 2, 3)) > 0.5).long()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_live_model_is_left_as_it_is_and_its_copy_trained(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    net, trained = network(), network()
    record = guard.train(net, data, threat=THREAT, defense=["trades", "awp"], training=SHORT, out=tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), network().state_dict().values(), strict=True)
    )
    assert net.training
    assert (record.label, record.finished, len(record.epochs), record.images) == ("trades + awp", True, 3, 54)
    from guard.weights import load_weights

    load_weights(trained, tmp_path / "weights.safetensors")
    assert not torch.equal(trained.state_dict()["1.weight"], net.state_dict()["1.weight"])
    with pytest.raises(
        guard.InputError, match=r"handed over in Python, and only you can build it. Load .*weights.safe"
    ):
        guard.load(tmp_path)


def test_the_same_folder_takes_no_other_images_or_weights(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    first = guard.train(network(), data, threat=THREAT, training=SHORT, out=tmp_path)
    assert guard.train(network(), data, threat=THREAT, training=SHORT, out=tmp_path) == first
    other = network()
    with torch.no_grad():
        other[1].weight += 0.1
    for net, images in ((network(), 1 - data[0]), (other, data[0])):
        with pytest.raises(
            guard.InputError, match=r"holds a training of other images or weights\. Give another folder"
        ):
            guard.train(net, (images, data[1]), threat=THREAT, training=SHORT, out=tmp_path)
    with pytest.raises(guard.InputError, match="belongs to another config"):
        guard.train(network(), data, threat=THREAT, defense="fgsm-rs", training=SHORT, out=tmp_path)


def test_a_network_that_a_defense_changed_comes_back_changed(tmp_path: Path) -> None:
    """Its caps were calibrated on training images, which loading does not need."""
    record = guard.train(
        {"name": "small-cnn", "mean": [0.3], "std": [0.4]},
        "digits",
        threat=THREAT,
        defense=["truncated-relu", "fgsm-rs"],
        training={"epochs": 1, "batch_size": 128},
        out=tmp_path,
    )
    net = guard.load(tmp_path)
    assert isinstance(net, guard.ImageModel), "it normalises"
    test = guard.Registry.load().create("dataset", "digits").load("test")[:200]
    with torch.no_grad():
        clean = float((net(test.floats()).argmax(1) == test.labels).double().mean())
    report = guard.evaluate(str(tmp_path), "digits", attacks=["noise"], threat=THREAT, limit=200)
    assert report.cells[0].clean_accuracy == pytest.approx(clean)
    assert record.label == "truncated-relu + fgsm-rs"
    saved = guard.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), saved.state_dict().values(), strict=True))


def test_a_training_that_fails_at_once_leaves_its_folder_to_a_mended_one(
    data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    class Broken(guard.Defense):
        name = "broken"

        def loss(self, model: nn.Module, *rest: object) -> Tensor:  # type: ignore[override]
            return model.no_such  # type: ignore[no-any-return]

    with pytest.raises(guard.ContractError, match=r"^training Sequential raised AttributeError: .*no_such"):
        guard.train(network(), data, threat=THREAT, defense=Broken(), training=SHORT, out=tmp_path)
    with pytest.raises(guard.ContractError, match="the loss became"):
        guard.train(network(), data, threat=THREAT, training=SHORT | {"lr": 1e30}, out=tmp_path)
    assert guard.train(network(), data, threat=THREAT, training=SHORT, out=tmp_path).finished


def test_no_defense_and_the_defense_none_are_one(tmp_path: Path) -> None:
    short = {"epochs": 1, "batch_size": 256}
    first = guard.train("small-cnn", "digits", threat=THREAT, training=short, out=tmp_path)
    assert guard.train("small-cnn", "digits", threat=THREAT, defense="none", training=short, out=tmp_path) == first
