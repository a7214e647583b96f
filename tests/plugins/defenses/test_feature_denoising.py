"""Feature denoising: the block's formula, where blocks are put, and that they learn."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from guard_plugins.defenses.feature_denoising import Denoised, NonLocalMeans
from torch import Generator, Tensor, nn

import guard
from guard import Defense, InputError
from guard.defense import stack

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

THREAT = guard.ThreatModel(norm="linf", epsilon=0.1)
Make = Callable[..., Defense]


@pytest.fixture
def denoising(make: Make) -> Make:
    return lambda *after: make("feature-denoising", after=after)


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=Generator().manual_seed(0), dtype=torch.float64)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build().double().eval()


def network() -> nn.Module:
    convolutions = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(180, 4))


def blocks(model: nn.Module) -> dict[str, NonLocalMeans]:
    return {name: module for name, module in model.named_modules() if isinstance(module, NonLocalMeans)}


def awake(model: nn.Module) -> nn.Module:
    """Its blocks change something."""
    generator = Generator().manual_seed(1)
    for block in blocks(model).values():
        for parameter in block.parameters():
            nn.init.normal_(parameter, generator=generator)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "height", "width"), [(6, 3, 5), (1, 2, 2)])
def test_the_block_is_that_of_the_paper(channels: int, height: int, width: int, training: bool) -> None:
    """Place by place, in the indices of the authors' code."""
    block = NonLocalMeans(channels, Generator().manual_seed(0)).double().train(training)
    generator = Generator().manual_seed(2)
    for name, parameter in block.named_parameters():
        nn.init.normal_(parameter, generator=generator)
        assert ("bias" in name) == (name == "norm.bias")
    block.norm.running_mean += 0.3
    x = torch.randn(3, channels, height, width, generator=generator, dtype=torch.float64)
    inner = max(channels // 2, 1)
    theta = torch.einsum("oi,nihw->nohw", block.theta.weight[:, :, 0, 0], x)
    phi = torch.einsum("oi,nihw->nohw", block.phi.weight[:, :, 0, 0], x)
    assert theta.shape[1] == inner
    products = torch.einsum("niab,nicd->nabcd", theta, phi) / inner**0.5
    weights = products.exp() / products.exp().sum((3, 4), keepdim=True)
    means = torch.einsum("nabcd,nicd->niab", weights, x)
    added = torch.einsum("oi,nihw->nohw", block.conv.weight[:, :, 0, 0], means)
    norm = block.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if training:
        mean, var = added.mean((0, 2, 3)), added.var((0, 2, 3), unbiased=False)
    else:
        mean, var = norm.running_mean, norm.running_var
    scale = norm.weight / (var + norm.eps).sqrt()
    expected = x + scale.view(-1, 1, 1) * (added - mean.view(-1, 1, 1)) + norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("ours", [True, False])
def test_each_stage_of_a_resnet_gets_a_block_that_changes_nothing_yet(
    ours: bool, training: bool, denoising: Make, registry: guard.Registry, pictures: Tensor
) -> None:
    def build() -> nn.Module:
        if ours:
            return registry.create("model", "resnet18-cifar").build(10, (3, 16, 16))
        return torchvision.models.resnet18(num_classes=10)

    plain, model = (guard.model(seeded(build), mean=[0.5] * 3, std=[0.2] * 3).double() for _ in range(2))
    changed = denoising().modify(model.train(training), pictures)
    assert {name: block.conv.in_channels for name, block in blocks(changed).items()} == {
        f"net.layer{number}.denoising": width for number, width in enumerate((64, 128, 256, 512), start=1)
    }
    assert all(module.training is training for module in changed.modules())
    with torch.no_grad():
        expected = plain.train(training)(pictures)
        assert torch.equal(changed(pictures), expected)
        assert not torch.allclose(awake(changed)(pictures), expected, rtol=1e-3)


@pytest.mark.parametrize("after", [("0",), ("1", "0.0"), ("0", "0.0", "0.0"), ("0.1", "1", "2")])
def test_layers_are_named_as_the_user_knows_them(after: tuple[str, ...], denoising: Make, pictures: Tensor) -> None:
    plain, model = seeded(network), guard.model(seeded(network))
    changed = awake(denoising(*after).modify(model, pictures))
    assert len(blocks(changed)) == len(set(after))
    with torch.no_grad():
        features = pictures
        found = dict(changed.net.named_modules())
        inner = {"0.0": "0.layer.0", "0.1": "0.layer.1"} if "0" in after else {}
        for name in ("0.0", "0.1", "0", "1", "2"):
            if name != "0":
                features = plain.get_submodule(name)(features)
            if name in after:
                features = found[f"{inner.get(name, name)}.denoising"](features)
        torch.testing.assert_close(changed(pictures), plain[3:](features))
    assert isinstance(found[after[-1]] if after[-1] in found else found["0.layer.0"], Denoised)


def test_an_image_does_not_meet_those_beside_it(denoising: Make, pictures: Tensor) -> None:
    model = awake(denoising("0").modify(seeded(network), pictures)).eval()
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in pictures])
        torch.testing.assert_close(alone, model(pictures), rtol=0, atol=1e-12)
        torch.testing.assert_close(model(pictures.flip(0)).flip(0), alone, rtol=0, atol=1e-12)


def test_blocks_begin_the_same_and_each_its_own_way(denoising: Make, pictures: Tensor) -> None:
    first, second = (denoising("0", "0.1").modify(seeded(network), pictures) for _ in range(2))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
        assert value.dtype in (torch.float64, torch.int64)
    one, other = blocks(first).values()
    assert not torch.equal(one.theta.weight, other.theta.weight)
    assert not torch.equal(one.theta.weight, one.phi.weight)


def test_a_layer_in_two_places_is_denoised_in_both(denoising: Make, pictures: Tensor) -> None:
    def shared() -> nn.Module:
        layer = nn.Conv2d(3, 3, 3, padding=1)
        return nn.Sequential(layer, nn.Tanh(), layer, nn.Flatten())

    model = denoising("0").modify(seeded(shared), pictures)
    assert model[0] is model[2]
    assert isinstance(model[0], Denoised)


def test_it_stands_beside_other_activations(denoising: Make, make: Make, pictures: Tensor) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.out = nn.Conv2d(3, 4, 3), nn.Linear(784, 4)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.out(F.relu(self.layer1(images)).flatten(1))
            return logits

    answers = []
    for name in ("feature-denoising", "truncated-relu", "feature-denoising"):
        caps = make("truncated-relu", cap=0.1)
        members = [denoising(), caps] if name == "feature-denoising" else [caps, denoising()]
        model = awake(stack(members).modify(seeded(Functional), pictures))
        assert len(blocks(model)) == 1
        with torch.no_grad():
            answers.append(model(pictures))
    assert torch.equal(answers[0], answers[1])
    assert stack(members).split()[0].members == (members[0],), "the caps act on what was trained"


def test_what_cannot_be_denoised_is_refused(denoising: Make, pictures: Tensor) -> None:
    defense = "defense 'feature-denoising'"
    for after, message in (
        (["3"], r"layer '3' of Sequential answers with shape \(2, 180\), not with maps \(N, C, H, W\)\. Name another"),
        (["0.2"], r"Sequential has no layer '0\.2'\. Did you mean '0\.[01]'\?$"),
        (["features"], r"Sequential has no layer 'features'\. Known are 0, 1, 2, 3, 4, 0\.0, 0\.1$"),
        (
            [],
            r"finds no residual stages \(layer1, layer2, \.\.\.\) in Sequential\. Name layers under after\. Known",
        ),
    ):
        with pytest.raises(InputError, match=f"{defense}:? {message}"):
            denoising(*after).modify(seeded(network), pictures)
    idle = seeded(network)
    idle.forward = lambda images: idle[4](idle[3](idle[2](idle[1](idle[0][0](images)))))  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"layer '0\.1' of Sequential does not run\. Name another one in after"):
        denoising("0.1").modify(idle, pictures)


def test_a_network_is_trained_where_it_stands(denoising: Make, make: Make) -> None:
    caps = make("truncated-relu")
    assert len(stack([denoising(), caps]).split()[0].members) == 1
    assert not stack([denoising()]).hardens


def test_blocks_learn_on_digits_and_are_loaded(tmp_path: Path) -> None:
    guard.train(
        "strided-cnn",
        "digits",
        threat=THREAT,
        defense=[{"name": "feature-denoising", "after": ["1", "3"]}, "fgsm-rs"],
        training={"epochs": 3, "batch_size": 32},
        out=tmp_path,
    )
    net = guard.load(tmp_path)
    found = blocks(net)
    assert list(found) == ["1.denoising", "3.denoising"]
    fresh = NonLocalMeans(16, Generator().manual_seed(0))
    assert (found["1.denoising"].norm.weight != 0).any()
    assert not torch.equal(found["1.denoising"].theta.weight, fresh.theta.weight)
    report = guard.evaluate(str(tmp_path), "digits", attacks=["fgsm"], threat=THREAT, limit=200)
    assert report.cells[0].status == "VALID"
    assert report.cells[0].clean_accuracy > 0.5
