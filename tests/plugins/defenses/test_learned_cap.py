"""Truncated ReLU with caps that are trained with the network."""

import copy
from pathlib import Path

import pytest
import torch
from guard_plugins.defenses.activations import layers
from guard_plugins.defenses.truncated_relu import Truncated
from torch import Tensor, nn

import guard
from guard import Defense
from guard.defense import stack
from guard.layers import placed

THREAT = guard.ThreatModel(norm="linf", epsilon=0.1)


@pytest.fixture
def learnable(registry: guard.Registry) -> Defense:
    return registry.create("defense", {"name": "truncated-relu", "learnable": True})


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def caps(model: nn.Module) -> dict[str, float]:
    return {name: layer.cap.item() for name, layer in layers(model, Truncated).items()}


def learned(cap: float) -> Truncated:
    layer = Truncated(cap).double()
    layer.learn()
    return layer


def test_the_gradient_of_a_cap_is_that_of_what_is_above_it() -> None:
    layer = learned(1.0)
    inputs = torch.tensor([-2.0, 0.5, 1.5, 7.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    outputs = layer(inputs)
    assert outputs.tolist() == [0, 0.5, 1, 1]
    (weights * outputs).sum().backward()
    assert layer.cap.grad is not None
    assert layer.cap.grad.item() == 4 + 8
    assert inputs.grad is not None
    assert inputs.grad.tolist() == [0, 2, 0, 0]


def test_a_cap_stays_above_zero_and_comes_back_at_once() -> None:
    layer = learned(0.35)
    inputs = torch.tensor([0.5, 1.0], dtype=torch.float64)
    seen = []
    for direction in (1, 1, 1, 1, 1, -1, -1):
        layer.zero_grad()
        (direction * layer(inputs).sum()).backward()
        with torch.no_grad():
            layer.cap -= 0.1 * layer.cap.grad  # two of the inputs are above it
        seen.append(layer(inputs).max().item())
    assert seen == pytest.approx([0.15, 0.001, 0.001, 0.001, 0.001, 0.15, 0.35])


def test_caps_begin_where_fixed_ones_are(learnable: Defense, registry: guard.Registry, pictures: Tensor) -> None:
    fixed = registry.create("defense", "truncated-relu").modify(network(), pictures)
    model = learnable.modify(network(), pictures)
    assert caps(model) == caps(fixed)
    with torch.no_grad():
        assert torch.equal(model(pictures), fixed(pictures))
    assert {name for name, _ in model.named_parameters()} - {name for name, _ in fixed.named_parameters()} == {
        "2.cap",
        "4.cap",
    }
    assert model.state_dict().keys() == fixed.state_dict().keys()
    given = registry.create("defense", {"name": "truncated-relu", "learnable": True, "cap": 0.3})
    assert caps(given.modify(network(), pictures)) == pytest.approx({"2": 0.3, "4": 0.3})


def test_a_layer_that_does_not_run_keeps_no_cap(learnable: Defense, pictures: Tensor) -> None:
    """As an auxiliary head in eval mode: an infinite parameter would be NaN after a step with weight decay."""

    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aside = network(), nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.body(images)
            return logits + self.aside(logits) if self.training else logits

    model = learnable.modify(Aside(), pictures).train()
    assert {name for name, _ in model.named_parameters() if name.endswith("cap")} == {"body.2.cap", "body.4.cap"}
    assert caps(model)["aside.1"] == float("inf")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    for _ in range(2):
        model(pictures).sum().backward()
        optimizer.step()
    assert torch.isfinite(model(pictures)).all()


def test_a_learnable_cap_is_a_training_member(learnable: Defense, registry: guard.Registry) -> None:
    fixed, noise = (registry.create("defense", name) for name in ("truncated-relu", "gaussian-augmentation"))
    assert (learnable.trains, fixed.trains) == (True, False)
    for members, left in (([learnable], 1), ([noise, learnable], 2), ([learnable, fixed], 1), ([fixed], 0)):
        assert len(stack(members).split()[0].members) == left
    assert not stack([learnable]).hardens


def test_learned_caps_travel(learnable: Defense, pictures: Tensor) -> None:
    """With the weights, in copies and to another precision."""
    model = learnable.modify(network(), pictures)
    with torch.no_grad():
        layers(model, Truncated)["2"].cap.fill_(0.125)
    other = learnable.modify(network(), pictures / 2)
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    double = placed(model, torch.device("cpu"), torch.float64)
    assert caps(other) == caps(twin) == caps(double) == caps(model)
    with torch.no_grad():
        expected = model(pictures)
        assert torch.equal(other(pictures), expected)
        assert torch.equal(twin(pictures), expected)
        answer = double(pictures.double())
        layers(twin, Truncated)["2"].cap.fill_(9)
        assert torch.equal(model(pictures), expected), "a copy has caps of its own"
    assert answer.dtype == torch.float64
    torch.testing.assert_close(answer.float(), expected)
    assert layers(double, Truncated)["2"].cap.requires_grad


def test_relaxing_goes_straight_through_learned_caps(learnable: Defense, pictures: Tensor) -> None:
    plain, model = network(), learnable.modify(network(), pictures)
    with torch.no_grad():
        for layer in layers(model, Truncated).values():
            layer.cap.fill_(0.05)
    relaxed = learnable.relax(model)
    gradients = []
    for net in (plain, model, relaxed):
        leaf = pictures.clone().requires_grad_()
        hidden = net[:3](leaf)  # behind one activation, so that what reaches it is the same
        gradients.append(torch.autograd.grad(hidden.sum(), leaf)[0])
    assert torch.equal(gradients[2], gradients[0])
    assert not torch.equal(gradients[1], gradients[0])
    with torch.no_grad():
        assert torch.equal(relaxed(pictures), model(pictures))


def test_caps_learn_on_digits_with_noise_from_given_weights(tmp_path: Path) -> None:
    short = {"epochs": 3, "batch_size": 32}
    guard.train("strided-cnn", "digits", threat=THREAT, training=short, out=tmp_path / "plain")
    record = guard.train(
        str(tmp_path / "plain"),
        "digits",
        threat=THREAT,
        defense=["gaussian-augmentation", {"name": "truncated-relu", "learnable": True, "cap": 1}],
        training=short | {"from": "weights", "lr": 0.05, "weight_decay": 0},
        out=tmp_path / "capped",
    )
    assert record.finished
    net = guard.load(tmp_path / "capped")
    assert all(isinstance(layer.cap, nn.Parameter) for layer in layers(net, Truncated).values())
    assert len(caps(net)) == 3
    assert all(abs(cap - 1) > 0.02 for cap in caps(net).values())
    test = guard.Registry.load().create("dataset", "digits").load("test")
    with torch.no_grad():
        clean = float((net(test.floats()).argmax(1) == test.labels).double().mean())
    assert clean > 0.5
    report = guard.evaluate(str(tmp_path / "capped"), "digits", attacks=["noise"], threat=THREAT)
    assert report.cells[0].clean_accuracy == pytest.approx(clean)


def test_a_learnable_cap_alone_has_its_network_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuned where weights are given: a network that knew nothing then knows something."""
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))
    ignorant = guard.model(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), mean=[0.3], std=[0.4]
    )
    report = guard.evaluate(
        ignorant,
        "digits",
        attacks=["fgsm"],
        defenses=["none", {"name": "truncated-relu", "learnable": True}],
        threat=THREAT,
        training={"epochs": 2, "batch_size": 64, "lr": 0.05},
        limit=100,
    )
    clean = {cell.defense: cell.clean_accuracy for cell in report.cells}
    assert [cell.status for cell in report.cells if cell.defense == "truncated-relu"] == ["VALID"]
    assert clean["none"] < 0.4 < 0.7 < clean["truncated-relu"]
