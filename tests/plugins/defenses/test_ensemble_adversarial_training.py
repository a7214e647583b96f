"""Ensemble adversarial training: whose adversaries it trains on, and what becomes of the sources."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import guard
from guard import Defense, InputError, Registry, ThreatModel
from guard.registry import load_file
from guard.weights import save_weights

Make = Callable[..., Defense]
Ascent = Callable[..., Tensor]

FILE = """
import torch
from torch import nn

NETS = []
def net(num_classes):
    with torch.random.fork_rng():
        torch.manual_seed({seed})
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, num_classes))
    NETS.append(model)
    return model

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 9))
"""
NAME = "ensemble-adversarial-training"


def network_of(seed: int) -> nn.Module:
    """What the file builds."""
    space: dict[str, Callable[[int], nn.Module]] = {}
    exec(FILE.format(seed=seed), space)
    return space["net"](4).double().eval()


def fgsm(model: nn.Module, images: Tensor, ascent: Ascent) -> Tensor:
    """Away from the class that the network predicts, in eval mode."""
    model = copy.deepcopy(model).eval()
    predicted = model(images).argmax(1)
    return (images + 0.1 * ascent(model, images, lambda logits: F.cross_entropy(logits, predicted)).sign()).clamp(0, 1)


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    for seed in (1, 2):
        (tmp_path / f"net{seed}.py").write_text(FILE.format(seed=seed))
    return [f"{tmp_path}/net{seed}.py:net" for seed in (1, 2)]


def test_each_step_is_the_formula_on_one_of_the_networks(
    sources: list[str],
    make: Make,
    update: Callable[..., object],
    descended: Callable[..., nn.Module],
    same: Callable[..., None],
    ascent: Ascent,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    points = [fgsm(each, images, ascent) for each in (network_of(1), network_of(2), network)]
    assert not any(torch.equal(points[a], points[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    defense, drawn = make(NAME, sources=sources), [0, 0, 0]
    for seed in range(60):
        adversarial = defense.adversary(network, images, labels, linf, Generator().manual_seed(seed))
        (number,) = (n for n, point in enumerate(points) if torch.allclose(adversarial, point, rtol=0, atol=1e-12))
        drawn[number] += 1
        if drawn[number] == 1:
            trained, point = copy.deepcopy(network), points[number]
            update(defense, trained, images, labels, linf, seed=seed)

            def formula(model: nn.Module, point: Tensor = point) -> Tensor:
                clean, moved = model(images).log_softmax(1), model(point).log_softmax(1)
                return -(clean + moved).gather(1, labels[:, None]).mean() / 2

            same(trained, descended(network, formula))
    assert min(drawn) > 10


def test_sources_are_built_once_and_stay_as_they_are(
    sources: list[str], make: Make, update: Callable[..., object], network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    path = Path(sources[0].split(":")[0])
    path.write_text(FILE.format(seed=3))  # of its own, for equal files are loaded once
    threat, defense = ThreatModel(norm="linf", epsilon=0.1), make(NAME, sources=sources[:1])
    keys, pickled = set(network.state_dict()), pickle.dumps(defense)
    for seed in range(12):
        update(defense, network, images, labels, threat, seed=seed)
    built = load_file(path).NETS  # type: ignore[attr-defined]
    assert len(built) == 1
    assert built[0][2].num_batches_tracked == 0
    assert all(weight.requires_grad for weight in built[0].parameters())  # guard's is a copy
    assert set(network.state_dict()) == keys
    assert pickle.dumps(defense) == pickled
    assert defense.model_dump(mode="json")["sources"][0]["name"] == "file"
    adversarial = [defense.adversary(network, images, labels, threat, Generator().manual_seed(s)) for s in (3, 3)]
    assert torch.equal(*adversarial)


@pytest.mark.usefixtures("global_generator_untouched")
def test_weights_and_normalization_of_a_source_are_read(
    tmp_path: Path, make: Make, registry: Registry, ascent: Ascent
) -> None:
    images = torch.rand(4, 1, 8, 8, generator=Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        source = guard.model(registry.create("model", "small-cnn").build(10, (1, 8, 8)), mean=[0.4], std=[0.3])
        blank = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(blank[1].weight)  # type: ignore[arg-type]
    save_weights(source, tmp_path / "a.safetensors")
    torch.save(source.net.state_dict(), tmp_path / "a.pt")  # type: ignore[union-attr]
    for file in ("a.safetensors", "a.pt"):
        given = {"name": "small-cnn", "weights": str(tmp_path / file), "mean": [0.4], "std": [0.3]}
        defense = make(NAME, sources=[given])
        threat, labels = ThreatModel(norm="linf", epsilon=0.1), torch.zeros(4).long()
        draws = [Generator().manual_seed(seed) for seed in range(8)]
        crafted = [defense.adversary(blank, images, labels, threat, generator) for generator in draws]
        moved = [each for each in crafted if not torch.equal(each, images)]  # the blank network's gradient is zero
        assert 0 < len(moved) < 8
        torch.testing.assert_close(moved[0], fgsm(source, images, ascent), rtol=0, atol=1e-6)


def test_what_does_not_fit_is_refused(
    sources: list[str], tmp_path: Path, make: Make, network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    def craft(source: object) -> None:
        defense, threat = make(NAME, sources=[source]), ThreatModel(norm="linf", epsilon=0.1)
        for seed in range(6):
            defense.adversary(network, images, labels, threat, Generator().manual_seed(seed))

    with pytest.raises(InputError, match="lacks the parameter 'sources'"):
        make(NAME)
    with pytest.raises(InputError, match=f"sources of defense '{NAME}'"):
        make(NAME, sources=[])
    with pytest.raises(InputError, match=r"source 'small-cnn' of .* is not trained. Give it weights: FILE"):
        make(NAME, sources=["small-cnn"])
    with pytest.raises(InputError, match=r"source 'small-cnn' of .* is not trained"):
        make(NAME, sources=[{"name": "small-cnn", "weights": "none"}])
    with pytest.raises(InputError, match="no model is named 'smal-cnn'"):
        make(NAME, sources=["smal-cnn"])
    with pytest.raises(InputError, match=r"returns 9 logits, the network in training 4. Give one with 4 outputs"):
        craft(sources[0].replace(":net", ":wide"))
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"nothing")
    for file in (broken, tmp_path / "none.pt"):
        with pytest.raises(InputError, match=r"weights"):
            craft({"name": "file", "path": sources[0].split(":")[0], "function": "net", "weights": str(file)})
