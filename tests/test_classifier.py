"""Any kind of classifier becomes images to logits."""

import copy
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guard import ImageModel, InputError, ModelSource
from guard.classifier import assemble, check_logits, model
from guard.weights import save_weights

IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A linear classifier whose answer a function wraps."""

    def __init__(self, classes: int = 5, wrap: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3 * 6 * 6, classes)
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.layer(images.flatten(1)))


NET = Net()


def test_normalises_like_by_hand() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    by_hand = torch.stack([(IMAGES[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert torch.allclose(model(NET, mean=mean, std=std)(IMAGES), NET(by_hand), atol=1e-6)
    assert torch.allclose(model(NET, mean=mean)(IMAGES), NET(IMAGES - torch.tensor(mean)[:, None, None]), atol=1e-6)


def test_float64_follows() -> None:
    wrapped = model(copy.deepcopy(NET), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0)).double()
    assert wrapped(IMAGES.double()).dtype == torch.float64
    assert torch.allclose(wrapped(IMAGES.double()).float(), wrapped.float()(IMAGES), atol=1e-5)


def test_normalises_where_the_images_are() -> None:
    """A net on a GPU may be wrapped; `meta` stands for it here."""
    wrapped = model(nn.Flatten().to("meta"), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    assert wrapped(IMAGES.to("meta")).device.type == "meta"


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (17, 31)])
def test_resizes_and_crops_like_torchvision(size: tuple[int, int]) -> None:
    from torchvision.transforms.v2 import functional as transforms

    images = torch.rand(2, 3, *size)
    expected = transforms.center_crop(transforms.resize(images, [13], antialias=True), [10])
    assert torch.allclose(model(lambda x: x.flatten(1), resize=13, crop=10)(images), expected.flatten(1), atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: SimpleNamespace(logits=logits, loss=None),
        lambda logits: (logits, "features"),
        lambda logits: [logits, logits.sum()],
        lambda logits: {"logits": logits, "features": 0},
        lambda logits: OrderedDict(features=0, logits=logits),
    ],
)
def test_unwraps_what_holds_logits(wrap: Callable[[Tensor], Any]) -> None:
    assert torch.equal(model(Net(wrap=wrap))(IMAGES), NET(IMAGES))


def test_softmax_of_the_logits_is_the_probabilities() -> None:
    wrapped = model(Net(wrap=lambda logits: logits.softmax(1)), outputs="probabilities")
    assert torch.allclose(wrapped(IMAGES).softmax(1), NET(IMAGES).softmax(1), atol=1e-6)


def test_a_probability_of_zero_stays_finite() -> None:
    logits = model(lambda x: torch.eye(4), outputs="probabilities")(IMAGES)
    assert logits.isfinite().all()
    assert torch.allclose(logits.softmax(1), torch.eye(4))


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: z[:, 0]])
def test_one_logit_is_two_classes(wrap: Callable[[Tensor], Tensor]) -> None:
    z = Net(1)(IMAGES)[:, 0]
    logits = model(Net(1, wrap))(IMAGES)
    assert torch.equal(logits, torch.stack([torch.zeros(4), z], 1))
    likely = model(Net(1, lambda z: wrap(z).sigmoid()), outputs="probabilities")(IMAGES)
    assert torch.allclose(likely.softmax(1)[:, 1], z.sigmoid(), atol=1e-6)
    assert torch.allclose(likely.softmax(1), logits.softmax(1), atol=1e-6)


def test_gradients_reach_the_images_through_a_function() -> None:
    wrapped = model(lambda images: {"logits": NET(images)}, std=(2.0, 2.0, 2.0))
    leaf = IMAGES.clone().requires_grad_()
    wrapped(leaf)[:, 0].sum().backward()
    expected = (NET.layer.weight[0] / 2).view(3, 6, 6)
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, expected.expand(4, 3, 6, 6), atol=1e-7)


def as_array(images: Any) -> Any:
    """A predictor that knows nothing of torch."""
    assert type(images) is np.ndarray
    assert images.dtype == np.float32
    flat = images.reshape(len(images), -1).astype(np.float64)
    return flat @ NET.layer.weight.detach().numpy().T.astype(np.float64) + NET.layer.bias.detach().numpy()


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: x.tolist()])
def test_a_predictor_of_arrays_gives_logits(wrap: Callable[[Any], Any]) -> None:
    wrapped = model(lambda images: wrap(as_array(images)), access="logits")
    leaf = IMAGES.clone().requires_grad_()
    logits = wrapped(leaf)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    assert torch.allclose(logits, NET(IMAGES), atol=1e-5)
    assert wrapped.double()(IMAGES.double()).dtype == torch.float64


def test_labels_become_one_hot() -> None:
    predicted = NET(IMAGES).argmax(1)
    for wrapped in (
        model(lambda images: as_array(images).argmax(1), access="labels", num_classes=5),
        model(Net(wrap=lambda logits: logits.argmax(1)), access="labels", num_classes=5),
    ):
        assert torch.equal(wrapped(IMAGES), F.one_hot(predicted, 5).float())
        assert wrapped.access == "labels"


def test_is_copied_and_pickled_and_keeps_the_nets_own_names() -> None:
    wrapped = model(nn.Sequential(nn.Flatten(), nn.Linear(108, 5)), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    expected = wrapped(IMAGES)
    assert torch.equal(copy.deepcopy(wrapped)(IMAGES), expected)
    assert torch.equal(pickle.loads(pickle.dumps(wrapped))(IMAGES), expected)
    assert isinstance(wrapped.net, nn.Module)
    assert list(wrapped.net.state_dict()) == ["1.weight", "1.bias"]
    assert list(wrapped.state_dict()) == ["net.1.weight", "net.1.bias"]


def test_an_image_model_is_returned_as_it_is() -> None:
    wrapped = model(NET)
    assert model(wrapped) is wrapped
    with pytest.raises(InputError, match="std is given for an ImageModel"):
        model(wrapped, std=(1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="outputs is given for an ImageModel"):
        model(wrapped, outputs="probabilities")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mean": (0.5,)}, "mean has 1 values; images have 3 channels"),
        ({"std": (0.5, 0.5)}, "std has 2 values; images have 3 channels"),
        ({"mean": (0.5,), "std": (0.5, 0.5, 0.5)}, "mean has 1 values and its std 3"),
        ({"std": (0.5, 0.0, 0.5)}, "std is [0.5, 0.0, 0.5]. Give numbers above 0"),
        ({"std": (0.5, float("nan"), 0.5)}, "Give numbers above 0"),
        ({"mean": 0.5}, "mean is 0.5. Give one number for each channel: mean=[0.5]"),
        ({"resize": 0}, "resize is 0"),
        ({"crop": 7}, "crop is 7; images are 6 x 6"),
        ({"outputs": "softmax"}, "outputs is 'softmax'. Choose one of logits, probabilities"),
        ({"access": "gradient"}, "access is 'gradient'. Choose one of gradients, logits, labels"),
        ({"outputs": "probabilities"}, "Give outputs='logits'"),
    ],
)
def test_refuses_settings_that_do_not_fit(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        model(NET, **keys)(IMAGES)


@pytest.mark.parametrize(
    ("net", "keys", "message"),
    [
        (lambda x: np.zeros((4, 5)), {}, "returns a ndarray. Give access='logits' or 'labels'"),
        (lambda x: np.zeros((4, 5)), {"access": "gradients"}, "returns a ndarray. Give access='logits' or 'labels'"),
        (lambda x: NET(x).argmax(1), {}, "returns int64 of shape (4,). For a model that returns labels"),
        (lambda x: np.arange(4), {"access": "labels"}, "give access='labels' and num_classes"),
        (lambda x: np.arange(4), {"access": "labels", "num_classes": 3}, "labels reach from 0 to 3; num_classes is 3"),
        (lambda x: {"out": NET(x)}, {}, "returns a dict of out. Give one with 'logits'"),
        (lambda x: NET(x)[:2], {}, "returns shape (2, 5) for 4 images"),
        (lambda x: x, {}, "returns shape (4, 3, 6, 6) for 4 images"),
        ("resnet18", {}, "a str is no model"),
    ],
)
def test_refuses_answers_that_are_no_logits(net: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        model(net, **keys)(IMAGES)


def test_check_logits() -> None:
    check_logits(torch.zeros(2, 3), 3, "mine")
    with pytest.raises(InputError, match="model 'mine' returns 10 logits for the 3 classes"):
        check_logits(torch.zeros(2, 10), 3, "mine")
    with pytest.raises(InputError, match=r"model 'mine' returns shape \(2, 3, 1\)"):
        check_logits(torch.zeros(2, 3, 1), 3, "mine")


class Source(ModelSource):
    """A linear model; `wrapped`: with a mean of its own."""

    name = "linear"
    wrapped: bool = False

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(108, num_classes))
        return model(net, mean=(0.5, 0.5, 0.5)) if self.wrapped else net


def built(**keys: Any) -> ImageModel:
    return assemble(Source(**keys), 5, (3, 6, 6))


@pytest.mark.parametrize("wrapped", [False, True])
def test_assemble_loads_weights_and_applies_keys(wrapped: bool, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 5))
    save_weights(net, tmp_path / "w.safetensors")
    keys = {} if wrapped else {"mean": (0.5, 0.5, 0.5)}
    assert torch.equal(
        built(wrapped=wrapped, weights=str(tmp_path / "w.safetensors"), **keys)(IMAGES), net(IMAGES - 0.5)
    )


def test_assemble_trains_with_weights_none_and_refuses_keys_given_twice() -> None:
    assert built(weights="none")(IMAGES).shape == (4, 5)
    assert built(access="logits").access == "logits"
    with pytest.raises(InputError, match="model 'linear' sets its own std, and std is given for it too"):
        built(wrapped=True, std=(1.0, 1.0, 1.0))
