"""k-winners-take-all: which activations are left, ties, and what an attacker's backward sees."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torchvision
from guard_plugins.defenses.activations import kept, layers
from guard_plugins.defenses.k_wta import Winners
from torch import Tensor, nn

import guard
from guard import Defense, InputError
from guard.defense import stack

THREAT = guard.ThreatModel(norm="linf", epsilon=0.1)


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def defense(registry: guard.Registry, **parameters: object) -> Defense:
    return registry.create("defense", {"name": "k-wta", **parameters})


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        convolutions = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(384, 30), nn.ReLU(), nn.Linear(30, 4)).double()


def winners(gamma: float) -> Winners:
    layer = Winners(math.inf)
    layer.gamma = gamma
    return layer


@pytest.mark.parametrize("gamma", [0.01, 0.1, 0.35, 0.9])
@pytest.mark.parametrize("shape", [(5, 7, 3, 4), (5, 30)])
def test_the_largest_of_each_image_are_left(gamma: float, shape: tuple[int, ...]) -> None:
    """Sorted by hand; of 84 and of 30 activations. Negative winners stay what they are."""
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = []
    for image in inputs:
        values = image.flatten().tolist()
        count = max(math.floor(gamma * len(values)), 1)
        best = sorted(range(len(values)), key=lambda place: -values[place])[:count]
        expected.append([value if place in best else 0.0 for place, value in enumerate(values)])
    assert winners(gamma)(inputs).flatten(1).tolist() == expected
    assert (winners(gamma)(inputs) < 0).any() == (gamma == 0.9)


def test_of_a_tie_all_are_left() -> None:
    layer = winners(0.5)
    assert layer(torch.tensor([[3.0, 2.0, 2.0, 1.0]])).tolist() == [[3, 2, 2, 0]]
    assert layer(torch.tensor([[0.0, 1.0, 1.0, 1.0]])).tolist() == [[0, 1, 1, 1]]
    assert layer(torch.full((1, 4), 0.7)).tolist() == torch.full((1, 4), 0.7).tolist()


def test_an_image_does_not_meet_those_beside_it(registry: guard.Registry, pictures: Tensor) -> None:
    model = defense(registry).modify(network().eval(), pictures)
    with torch.no_grad():
        whole = model(pictures)
        alone = torch.cat([model(image[None]) for image in pictures])
        flipped = model(pictures.flip(0)).flip(0)
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(flipped, whole, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("global_generator_untouched")
def test_every_layer_of_a_network_keeps_its_share(registry: guard.Registry, pictures: Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        model = torchvision.models.resnet18(num_classes=10).double().eval()
    changed = defense(registry, gamma=0.2).modify(model, pictures)
    assert kept(changed, pictures) == ()
    found, seen = layers(changed, Winners), []
    for layer in found.values():
        layer.register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        changed(pictures)
    assert (len(found), len(seen)) == (9, 17)
    for before, after in seen:
        size = before[0].numel()
        assert ((after != 0).flatten(1).sum(1) == math.floor(0.2 * size)).all()
        assert torch.equal(after[after != 0], before[after != 0])


def test_the_relaxed_backward_is_that_of_a_plain_relu(registry: guard.Registry, pictures: Tensor) -> None:
    plain, model = network().eval(), defense(registry).modify(network().eval(), pictures)
    relaxed = defense(registry).relax(model)
    gradients = []
    for net in (plain, model, relaxed):
        leaf = pictures.clone().requires_grad_()
        gradients.append(torch.autograd.grad(net[:3](leaf).sum(), leaf)[0])  # behind one of them: the same reaches it
    assert torch.equal(gradients[2], gradients[0])
    changed = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert changed > 0.5
    with torch.no_grad():
        assert torch.equal(relaxed(pictures), model(pictures))
        assert not torch.allclose(model(pictures), plain(pictures))
    assert not layers(model, Winners)["2"].straight


def test_a_network_is_trained_where_it_stands(registry: guard.Registry) -> None:
    noise, caps = (registry.create("defense", name) for name in ("gaussian-augmentation", "truncated-relu"))
    for members, left in (([defense(registry)], 1), ([noise, defense(registry)], 2), ([defense(registry), caps], 1)):
        assert len(stack(members).split()[0].members) == left
    assert not stack([defense(registry)]).hardens


def test_a_copy_keeps_its_share(registry: guard.Registry, pictures: Tensor) -> None:
    model = defense(registry, gamma=0.3).modify(network().eval(), pictures)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(pictures), model(pictures))
    assert model.state_dict().keys() == network().state_dict().keys(), "weights of the plain network fit, and back"


def test_bad_input_is_refused(registry: guard.Registry, pictures: Tensor) -> None:
    for gamma in (0, 1, -0.1):
        with pytest.raises(InputError, match=f"gamma of defense 'k-wta' is {gamma}; it must be"):
            defense(registry, gamma=gamma)
    with pytest.raises(InputError, match=r"'k-wta' finds no ReLU to replace in Sequential, which has 1 \(GELU"):
        defense(registry).modify(nn.Sequential(nn.Flatten(), nn.GELU()), pictures)
    capped = registry.create("defense", {"name": "truncated-relu", "cap": 1}).modify(network(), pictures)
    with pytest.raises(InputError, match="defense 'k-wta' finds no ReLU"):
        defense(registry).modify(capped, pictures)


def test_it_learns_on_digits_and_is_loaded(tmp_path: Path) -> None:
    guard.train(
        "strided-cnn",
        "digits",
        threat=THREAT,
        defense={"name": "k-wta", "gamma": 0.2},
        training={"epochs": 3, "batch_size": 32},
        out=tmp_path,
    )
    net = guard.load(tmp_path)
    assert [layer.gamma for layer in layers(net, Winners).values()] == [0.2] * 3
    report = guard.evaluate(str(tmp_path), "digits", attacks=["fgsm"], threat=THREAT, limit=200)
    assert report.cells[0].status == "VALID"
    assert report.cells[0].clean_accuracy > 0.5


def test_alone_it_is_trained_for_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path))
    report = guard.evaluate(
        "strided-cnn",
        "digits",
        attacks=["fgsm"],
        defenses=[{"name": "k-wta", "gamma": 0.2}],
        threat=THREAT,
        training={"epochs": 3, "batch_size": 32},
        limit=200,
    )
    (cell,) = report.cells
    assert (cell.status, cell.knowledge) == ("VALID", "adaptive")
    assert cell.clean_accuracy > 0.5
    assert len(cell.candidates) > 1, "the relaxed gradient is tried, too"
