"""Truncated ReLU: where its caps come from, what they bound, and what an attacker's backward sees."""

from collections.abc import Callable

import pytest
import torch
from guard_plugins.defenses.truncated_relu import Truncated
from torch import Generator, Tensor, nn

from guard import Defense, InputError, Registry

Outputs = Callable[[nn.Module, Tensor], dict[str, Tensor]]


@pytest.fixture
def make(registry: Registry) -> Callable[..., Defense]:
    def create(**parameters: object) -> Defense:
        return registry.create("defense", {"name": "truncated-relu", **parameters})

    return create


def pictures(count: int = 16, side: int = 8, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, side, side, generator=Generator().manual_seed(0))


class Wrapped(nn.Module):
    """A model as guard hands it over: code that no tracer follows around a `net`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        if images.min() < 0:
            raise ValueError("images are in [0, 1]")
        logits: Tensor = self.net(images - 0.5)
        return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_activation_exceeds_the_cap(
    make: Callable[..., Defense], dtype: torch.dtype, functional: Callable[[], nn.Module], outputs_of: Outputs
) -> None:
    model = make(cap=0.2).modify(Wrapped(functional()).to(dtype), pictures())
    seen = outputs_of(model, pictures(64).to(dtype))
    assert len(seen) == 6
    assert torch.cat(list(seen.values())).max().item() == pytest.approx(0.2)
    for outputs in seen.values():
        assert outputs.dtype == dtype
        assert outputs.min() >= 0
        assert outputs.max() <= torch.tensor(0.2).to(dtype)


@pytest.mark.parametrize("percentile", [80, 90, 99, 100])
def test_a_calibrated_cap_is_the_layers_own_quantile(
    make: Callable[..., Defense], percentile: float, functional: Callable[[], nn.Module], outputs_of: Outputs
) -> None:
    images = pictures(150)  # three forwards
    caps = make(percentile=percentile).modify(Wrapped(functional()), images).state_dict()
    clean = outputs_of(make(cap=1e9).modify(Wrapped(functional()), images), images)
    assert len(clean) == 6
    for name, outputs in clean.items():
        assert caps[f"{name}.cap"].item() == pytest.approx(outputs.quantile(percentile / 100).item(), rel=1e-5)


def test_a_calibrated_cap_counts_every_use_of_a_shared_module(make: Callable[..., Defense]) -> None:
    torch.manual_seed(0)
    shared = nn.ReLU()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), shared, nn.Linear(8, 8), shared)
    images = pictures(100)
    with torch.no_grad():
        both = torch.cat([model[:3](images).flatten(), model(images).flatten()])
    changed = make(percentile=95).modify(model, images)
    assert changed[2].cap.item() == pytest.approx(both.quantile(0.95).item(), rel=1e-5)


@pytest.mark.usefixtures("global_generator_untouched")
def test_calibration_leaves_the_network_as_it_was(make: Callable[..., Defense]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU()).train()
    torch.manual_seed(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make().modify(model, pictures())
    assert model.training
    assert model[2].training
    assert model[1].weight.requires_grad
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_the_caps_travel_with_the_weights(make: Callable[..., Defense], functional: Callable[[], nn.Module]) -> None:
    first = make().modify(Wrapped(functional()), pictures())
    second = make(cap=3).modify(Wrapped(functional()), pictures())
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(first.eval()(pictures()), second.eval()(pictures()))


def test_the_straight_backward_is_that_of_a_plain_relu(make: Callable[..., Defense]) -> None:
    inputs = torch.tensor([-1.0, 0.0, 0.5, 0.9, 7.0])
    model = nn.Sequential(Truncated(1.0))
    relaxed = make().relax(model)
    for net, expected in ((model, [0, 0, 1, 1, 0]), (relaxed, [0, 0, 1, 1, 1])):
        leaf = inputs.clone().requires_grad_()
        outputs = net(leaf)
        assert outputs.tolist() == pytest.approx([0, 0, 0.5, 0.9, 1])
        outputs.sum().backward()
        assert leaf.grad.tolist() == expected


def test_relaxing_keeps_the_forward_and_the_original(
    make: Callable[..., Defense], functional: Callable[[], nn.Module]
) -> None:
    model = make(cap=0.05).modify(Wrapped(functional()), pictures()).eval()
    relaxed = make(cap=0.05).relax(model)
    gradients = []
    for net in (model, relaxed):
        leaf = pictures().requires_grad_()
        logits = net(leaf)
        gradients.append(torch.autograd.grad(logits[:, 0].sum(), leaf)[0])
        assert torch.equal(logits, model(pictures()))
    assert relaxed is not model
    assert (gradients[0] == 0).double().mean() > 2 * (gradients[1] == 0).double().mean()


def test_a_layer_that_is_almost_silent_is_refused(make: Callable[..., Defense]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU())
    nn.init.constant_(model[1].bias, -100.0)
    with pytest.raises(InputError, match=r"percentile 99 of the activations of '2' is 0.*Give a higher"):
        make().modify(model, pictures())


@pytest.mark.parametrize(("parameter", "value"), [("cap", 0), ("cap", -1), ("percentile", 0), ("percentile", 101)])
def test_parameters_without_meaning_are_refused(make: Callable[..., Defense], parameter: str, value: float) -> None:
    with pytest.raises(InputError, match=parameter):
        make(**{parameter: value})
