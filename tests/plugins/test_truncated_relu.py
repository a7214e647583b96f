"""Truncated ReLU: which activations it replaces in which networks, and what it says of the others."""

import copy
import logging
import statistics
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from guard_plugins.defenses.activations import kept
from guard_plugins.defenses.activations import layers as layers_of
from guard_plugins.defenses.truncated_relu import Truncated
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from guard import Defense, InputError, Registry

Outputs = Callable[[nn.Module, Tensor], dict[str, Tensor]]


@pytest.fixture
def make(registry: Registry) -> Callable[..., Defense]:
    def create(**parameters: object) -> Defense:
        return registry.create("defense", {"name": "truncated-relu", **parameters})

    return create


def layers(model: nn.Module) -> dict[str, Truncated]:
    return layers_of(model, Truncated)


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


class Branching(nn.Module):
    """One ReLU that tracing cannot reach, another that it can, and an activation of another kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.act, self.gelu = nn.Linear(192, 8), nn.ReLU(), nn.GELU()

    def forward(self, images: Tensor) -> Tensor:
        x = self.inner(images.flatten(1))
        x = F.relu(x) if x.sum() > -1e9 else x
        x = F.dropout(x, 0.5, self.training)
        x = x.relu_()
        logits: Tensor = self.gelu(self.act(x))
        return logits


class Reusing(nn.Module):
    """Goes on with a tensor that its ReLU has changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1) - 0.5
        return self.act(x) + x


class Counting(TorchFunctionMode):
    """Counts calls of functional ReLUs."""

    calls = 0

    def __torch_function__(
        self, func: object, types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        self.calls += getattr(func, "__name__", "") in ("relu", "relu_", "relu6")
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


def relus(model: nn.Module, side: int) -> int:
    """How many modules are ReLUs, and how many functional ones a forward in train mode calls beside them; nothing is
    computed."""
    model = copy.deepcopy(model).to("meta").train()
    modules = [module for module in model.modules() if isinstance(module, nn.ReLU | nn.ReLU6)]
    inside: list[nn.Module] = []
    for module in modules:
        module.register_forward_hook(lambda module, inputs, output: inside.append(module))
    with Counting() as counting:
        model(torch.empty(2, 3, side, side, device="meta"))
    return len(modules) + counting.calls - len(inside)


def inception() -> nn.Module:
    return torchvision.models.inception_v3(num_classes=10, init_weights=False)


NETS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 32, 9),
    "alexnet": (lambda: torchvision.models.alexnet(num_classes=10), 64, 7),
    "squeezenet1_0": (lambda: torchvision.models.squeezenet1_0(num_classes=10), 32, 26),
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(num_classes=10), 32, 26),
    "inception_v3": (inception, 75, 96),
}


@pytest.mark.parametrize("name", NETS)
def test_every_relu_of_a_torchvision_model_is_replaced(
    make: Callable[..., Defense], name: str, outputs_of: Outputs
) -> None:
    build, side, count = NETS[name]
    torch.manual_seed(0)
    net = build()
    whole = 299 if count == 96 else side  # which inception's auxiliary head needs; in eval mode it does not run
    assert relus(net, whole) == count, "the count that is expected, too"
    model, images = Wrapped(net).eval(), pictures(2, side)
    with torch.no_grad():
        before = model(images)
    changed = make(cap=1e9).modify(model, images)
    assert len(layers(changed)) == count
    assert (relus(changed.net, whole), kept(changed, images)) == (0, ())
    with torch.no_grad():
        assert torch.equal(changed(images), before)
    cap = statistics.median(outputs.max().item() for outputs in outputs_of(changed, images).values()) / 2
    seen = outputs_of(make(cap=cap).modify(changed, images), images)
    assert len(seen) == (94 if count == 96 else count)
    assert max(outputs.max().item() for outputs in seen.values()) == pytest.approx(cap)


def test_an_auxiliary_head_is_truncated_for_training(make: Callable[..., Defense], outputs_of: Outputs) -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.features = nn.Sequential(nn.Conv2d(3, 768, 1), nn.AdaptiveAvgPool2d(17))
            self.head = torchvision.models.inception.InceptionAux(768, 10)
            self.main = nn.Sequential(nn.Flatten(), nn.Linear(768 * 17 * 17, 10), nn.ReLU())

        def forward(self, images: Tensor) -> Tensor:
            features = self.features(images)
            return self.head(features) if self.training else self.main(features)

    model, images = Aside(), pictures(2)
    with torch.no_grad():
        before = copy.deepcopy(model)(images)
        changed = make(cap=1e9).modify(model, images)
        assert torch.equal(copy.deepcopy(changed)(images), before)
        changed = make(cap=1e-3).modify(changed, images)
    seen = outputs_of(changed.head, changed.features(images))
    assert [outputs.max().item() for outputs in seen.values()] == pytest.approx([1e-3] * 2)


def test_a_module_in_several_places_stays_one(make: Callable[..., Defense]) -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), shared, nn.Linear(8, 8), shared)
    changed = make(cap=0.1).modify(model, pictures())
    assert changed[2] is changed[4]
    assert len(layers(changed)) == 1


@pytest.mark.parametrize("wrap", [Wrapped, lambda net: net])
def test_functional_relus_are_replaced_in_every_spelling(
    make: Callable[..., Defense],
    wrap: Callable[[nn.Module], nn.Module],
    functional: Callable[[], nn.Module],
    outputs_of: Outputs,
) -> None:
    model = wrap(functional()).eval()
    images, twin = pictures(), copy.deepcopy(model)
    assert relus(functional(), 8) == 6
    changed = make(cap=1e9).modify(model, images)
    assert len(layers(changed)) == 6
    assert kept(changed, images) == ()
    with torch.no_grad():
        torch.testing.assert_close(changed(images), twin(images), rtol=0, atol=0)
        assert torch.equal(changed.train()(images), twin.train()(images))  # batch statistics are still used
    assert sorted(value.item() for name, value in changed.state_dict().items() if name.endswith(".cap")) == [
        6,
        *[1e9] * 5,
    ]
    assert all(outputs.max() <= 6.0 + 1e9 for outputs in outputs_of(changed, images).values())
    assert {name for name, _ in changed.named_parameters()} == {name for name, _ in twin.named_parameters()}


def test_what_is_kept_is_said(make: Callable[..., Defense], caplog: pytest.LogCaptureFixture) -> None:
    images = pictures()
    with caplog.at_level(logging.INFO):
        changed = make(cap=1).modify(Wrapped(Branching()), images)
    expected = ("net.gelu (GELU)", "functional relu (1 times)", "functional relu_ (1 times)")
    assert kept(changed, images) == expected
    assert list(layers(changed)) == ["net.act"]
    assert caplog.messages == [f"truncated-relu: replaced net.act; kept {', '.join(expected)}"]


def test_code_that_depends_on_the_mode_keeps_its_relus(make: Callable[..., Defense]) -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            return F.dropout(F.relu(self.act(images)).flatten(1), 0.5, self.training)

    changed = make(cap=1).modify(Moody(), pictures())
    assert kept(changed, pictures()) == ("functional relu (1 times)",)
    assert (changed.train()(pictures()) == 0).double().mean() > 0.3
    assert (changed.eval()(pictures()) == 0).double().mean() < 0.1


def test_a_network_without_relus_is_refused(make: Callable[..., Defense]) -> None:
    model = Wrapped(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.GELU()))
    with pytest.raises(InputError, match=r"finds no ReLU to replace in Sequential, which has net\.2 \(GELU\)"):
        make().modify(model, pictures())


def test_a_tensor_used_again_after_an_inplace_relu_is_refused(make: Callable[..., Defense]) -> None:
    with pytest.raises(InputError, match="Reusing uses a tensor again that a ReLU has changed in place"):
        make(cap=1).modify(Reusing(), pictures())
