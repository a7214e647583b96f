"""The models that ship."""

import copy
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from guard_plugins.datasets.digits import Digits
from guard_plugins.models.resnet_cifar import ResNet18Cifar
from guard_plugins.models.small_cnn import SmallCNN
from guard_plugins.models.torchvision import Torchvision
from torch import Tensor, nn

from guard import InputError, ModelSource, Registry
from guard.classifier import assemble


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (4, 9, 50)])
@pytest.mark.parametrize("source", [SmallCNN(), ResNet18Cifar()])
def test_built_for_the_images(source: ModelSource, shape: tuple[int, int, int]) -> None:
    net = source.build(7, shape)
    assert net.eval()(torch.rand(2, *shape)).shape == (2, 7)
    assert sum(isinstance(module, nn.ReLU) for module in net.modules()) >= 3


def test_small_cnn_refuses_smaller_images() -> None:
    with pytest.raises(InputError, match="at least 8 x 8; these are 7 x 9"):
        SmallCNN().build(10, (1, 7, 9))


def test_small_cnn_treats_each_image_on_its_own() -> None:
    net, images = SmallCNN().build(10, (1, 8, 8)).double(), torch.rand(3, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(net.train()(images)[:1], net(images[:1]), atol=1e-12)


def test_small_cnn_learns_digits() -> None:
    train, test = Digits().load("train"), Digits().load("test")
    epochs, batch = 15, 128
    torch.manual_seed(0)
    net = SmallCNN().build(10, (1, 8, 8))
    updates = epochs * -(-len(train) // batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.4 * updates), (updates - step) / (0.6 * updates))
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(net(train.images[rows]), train.labels[rows]).backward()
            optimizer.step()
            schedule.step()
    accuracy = [(net(data.images).argmax(1) == data.labels).double().mean().item() for data in (train, test)]
    assert accuracy[0] > 0.97  # an SVM on the pixels reaches 96.3 % on the test split, whose writers are others
    assert accuracy[1] > 0.88


def alive(net: nn.Module) -> nn.Module:
    """In eval mode, with statistics of batch normalisation that let random weights tell images apart."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(torch.rand(8, 3, 64, 64).to(next(net.parameters())))
    return net.eval()


def reference_resnet18(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Pre-activation ResNet-18 in eval mode, written out in functions of the weights' published names."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.relu(F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"]))

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            out = norm(x, f"{name}.bn1")
            if f"{name}.shortcut.0.weight" in state:
                x = F.conv2d(out, state[f"{name}.shortcut.0.weight"], stride=stride)
            out = F.conv2d(out, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            x = x + F.conv2d(norm(out, f"{name}.bn2"), state[f"{name}.conv2.weight"], padding=1)
    return F.linear(F.avg_pool2d(norm(x, "bn"), 4).flatten(1), state["linear.weight"], state["linear.bias"])


def test_resnet18_is_the_published_network() -> None:
    net = ResNet18Cifar().build(10, (3, 32, 32)).double()
    assert sum(parameter.numel() for parameter in net.parameters()) == 11_172_170
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference_resnet18(dict(alive(net).state_dict()), images)
        assert (expected[0] - expected[1]).abs().max() > 0.1
        assert torch.allclose(net(images), expected, rtol=1e-9, atol=1e-12)


VARIANT = "shufflenet_v2_x0_5"  # the smallest with a linear head


def random_net(variant: str = VARIANT, num_classes: int = 1000) -> nn.Module:
    from torchvision.models import get_model

    torch.manual_seed(3)
    net: nn.Module = get_model(variant, weights=None, num_classes=num_classes)
    return alive(net)


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which torch keeps downloads; there are none, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*arguments: Any, **keys: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    return tmp_path / "hub" / "checkpoints"


def keep_weights(folder: Path, variant: str) -> nn.Module:
    """Put random weights where torch keeps the published ones."""
    from torchvision.models import get_model_weights

    net = random_net(variant)
    folder.mkdir(parents=True)
    torch.save(net.state_dict(), folder / Path(get_model_weights(variant)["DEFAULT"].url).name)
    return net


def test_torchvision_without_weights() -> None:
    source = Registry.load().create("model", f"torchvision:{VARIANT}")
    assert source == Torchvision(variant=VARIANT)
    assert not source.trained
    assert assemble(source, 7, (3, 32, 32)).eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1"])
def test_published_weights_bring_their_preprocessing(downloaded: Path, weights: str) -> None:
    from torchvision.models import get_model_weights

    net = keep_weights(downloaded, VARIANT)
    wrapped = assemble(Torchvision(variant=VARIANT, weights=weights), 1000, (3, 300, 260)).eval()
    images = torch.rand(2, 3, 300, 260)
    look = get_model_weights(VARIANT)[weights].transforms()
    with torch.no_grad():
        assert (net(look(images)) - net(images)).abs().max() > 0.01
        assert torch.allclose(wrapped(images), net(look(images)), atol=1e-4)


def test_published_weights_for_other_classes_get_a_new_head(downloaded: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = keep_weights(downloaded, VARIANT)
    wrapped = assemble(Torchvision(variant=VARIANT, weights="DEFAULT"), 7, (3, 32, 32)).eval()
    assert wrapped(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert "new last layer: 7 classes, not 1000" in caplog.text
    own, given = copy.copy(wrapped.net.state_dict()), net.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, given[key]) for key, value in own.items() if not key.startswith("fc."))


def test_a_network_without_a_linear_head_is_refused_for_other_classes(downloaded: Path) -> None:
    keep_weights(downloaded, "squeezenet1_1")
    with pytest.raises(InputError, match="are for 1000 classes, the data set has 7, and it has no linear layer"):
        Torchvision(variant="squeezenet1_1", weights="DEFAULT").build(7, (3, 64, 64))


def test_without_a_network_the_file_to_fetch_is_named(downloaded: Path) -> None:
    with pytest.raises(
        InputError, match=r"could not be downloaded: .*no network.*Put shufflenet\S+\.pth into"
    ) as caught:
        Torchvision(variant=VARIANT, weights="DEFAULT").build(1000, (3, 64, 64))
    assert "\n" not in str(caught.value)
    assert str(downloaded) in str(caught.value)


def test_a_file_is_loaded_as_weights(tmp_path: Path) -> None:
    net = random_net(num_classes=7)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    source = Torchvision(variant=VARIANT, weights=str(tmp_path / "w.pt"))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(assemble(source, 7, (3, 32, 32)).eval()(images), net(images))
    assert source.fingerprint() != Torchvision(variant=VARIANT).fingerprint()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnt18", "torchvision has no classifier 'resnt18'. Did you mean 'resnet18'?"),
        ({"name": "torchvision:resnet18", "weights": "IMAGENET1K_V3"}, "Did you mean 'IMAGENET1K_V1'?"),
        ({"name": "torchvision:resnet18", "weights": "no.pt"}, "weights 'no.pt' are no file and none of torchvision's"),
        ("torchvision", "model 'torchvision' lacks the parameter 'variant'"),
    ],
)
def test_unknown_names_are_answered_with_a_suggestion(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Registry.load().create("model", spec)


def test_torchvision_takes_colour_only() -> None:
    with pytest.raises(InputError, match="takes 3 channels; these images have 1"):
        Torchvision(variant=VARIANT).build(10, (1, 28, 28))
