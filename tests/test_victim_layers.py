"""The layers of a model as its victim shows them: their names, shapes and features."""

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import guard
from guard import ContractError, Defense, Goal, InputError, Rng, Victim
from guard.evaluation.bridges import Relaxed

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]


class Net(nn.Module):
    """A normalisation, a convolution, one in-place ReLU that runs twice, a layer that answers with a tuple, one that
    puts tokens before images, one that never runs, and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.center = Center()
        self.conv = nn.utils.skip_init(nn.Conv2d, 3, 5, 3, padding=1).double()
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.utils.skip_init(nn.Conv2d, 5, 6, 2, stride=2).double()
        self.tuple = Pair()
        self.sequence = TokensFirst()
        self.unused = nn.Identity()
        self.out = nn.utils.skip_init(nn.Linear, 6, 4).double()
        generator = torch.Generator().manual_seed(2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.down(self.relu(self.conv(self.center(images)))))
        self.sequence(features)
        both: Tensor = self.tuple(features)[0]
        logits: Tensor = self.out(both.mean((2, 3)))
        return logits


class Center(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images - 0.5


class Pair(nn.Module):
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features


class TokensFirst(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.flatten(2).permute(2, 0, 1)


class Half(Defense):
    name = "half"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images / 2


SHAPES = {"conv": (5, 4, 4), "down": (6, 2, 2), "relu": (6, 2, 2), "out": (4,)}


def test_layers_are_in_the_order_in_which_they_last_ran(make_victim: Make, images: Tensor) -> None:
    """Without what only prepares the images, tuples, other batch dimensions and what never ran."""
    net = Net()
    victim = make_victim(net, images)
    assert list(victim.layers.items()) == list(SHAPES.items())
    assert victim.counts.forwards.tolist() == [0] * 8
    assert victim[torch.tensor([3])].layers == SHAPES
    assert not any(layer._forward_hooks for layer in net.modules())


def test_layers_are_named_as_in_the_users_own_network(make_victim: Make, images: Tensor) -> None:
    net = Net()
    plain, wrapped = make_victim(net, images), make_victim(guard.model(net), images)
    assert wrapped.layers == plain.layers == SHAPES
    expected = plain.features(images, ["conv"])["conv"]
    assert torch.equal(wrapped.features(images, ["conv"])["conv"], expected)
    assert torch.equal(wrapped.features(images, ["net.conv"])["net.conv"], expected)
    nested = nn.Sequential()
    nested.add_module("body", net)
    assert "body.conv" in make_victim(guard.model(nested), images).layers


def test_a_model_without_modules_has_no_layers(make_victim: Make, images: Tensor) -> None:
    assert make_victim(guard.model(lambda points: points.flatten(1)[:, :4]), images).layers == {}


def test_features_are_what_the_layers_answered_and_cost_one_forward(make_victim: Make, images: Tensor) -> None:
    net = Net()
    victim = make_victim(net, images)
    found = victim.features(images, ["conv", "relu", "out"])
    first = net.conv(images - 0.5).detach()
    second = net.down(F.relu(first)).detach()
    assert torch.equal(found["conv"], first)  # the in-place ReLU that follows has not touched it
    assert (found["conv"] < 0).any()
    assert torch.equal(found["relu"], F.relu(second))  # of the two times that it ran, the last
    assert torch.equal(found["out"], net(images).detach())
    assert not any(value.requires_grad for value in found.values())
    assert victim.counts.forwards.tolist() == [1] * 8
    assert victim.counts.backwards.tolist() == [0] * 8
    some = torch.tensor([6, 2])
    rows = victim[some].features(images[some].repeat_interleave(2, 0), ["conv"])["conv"]
    torch.testing.assert_close(rows, first[some].repeat_interleave(2, 0))


def test_features_are_of_what_the_model_sees(make_victim: Make, images: Tensor) -> None:
    """Behind the preprocesses and the transform of `through`, and never of a faster execution."""
    net = Net()
    expected = net.conv((images + 0.1) / 2 - 0.5).detach()
    victim = make_victim(net, images, stages=[Half()], search=nn.Flatten())
    found = victim.through(lambda x, origin: origin + x, images).features(torch.full_like(images, 0.1), ["conv"])
    torch.testing.assert_close(found["conv"], expected)


def test_a_gradient_of_features_is_autograds(make_victim: Make, images: Tensor) -> None:
    net = Net()

    def loss(logits: Tensor, goal: Goal, features: dict[str, Tensor]) -> Tensor:
        return features["net.down"].square().sum((1, 2, 3)) + features["conv"].sum((1, 2, 3))

    victim = make_victim(guard.model(net), images)
    goal = Goal(torch.zeros(8, dtype=torch.int64))
    gradient, _, _ = victim.gradient(images, goal, loss, ["conv", "net.down"])
    leaf = images.clone().requires_grad_()
    first = net.conv(leaf - 0.5)
    (expected,) = torch.autograd.grad(net.down(F.relu(first)).square().sum() + first.sum(), leaf)
    torch.testing.assert_close(gradient, expected)
    assert victim.counts.forwards.tolist() == victim.counts.backwards.tolist() == [1] * 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cnov", "the model has no layer 'cnov'. Did you mean 'conv'?"),
        ("", "the model has no layer ''. Known: center, conv, down, out, relu, sequence, tuple, unused"),
        ("tuple", "layer 'tuple' answers with a tuple, not a tensor. Name another layer"),
        (
            "sequence",
            "layer 'sequence' answers with shape (4, 8, 6) for 8 images. Name one that has a row for each image",
        ),
        ("unused", "layer 'unused' does not run when the model does. Name another layer"),
    ],
)
@pytest.mark.parametrize("ask", ["features", "gradient"])
def test_a_layer_that_cannot_be_compared_is_refused(
    make_victim: Make, images: Tensor, name: str, message: str, ask: str
) -> None:
    net = Net()
    victim = make_victim(guard.model(net), images)
    goal = Goal(torch.zeros(8, dtype=torch.int64))
    asks: dict[str, Callable[[], object]] = {
        "features": lambda: victim.features(images, ["conv", name]),
        "gradient": lambda: victim.gradient(images, goal, lambda *given: given[0].sum(1), ["conv", name]),
    }
    with pytest.raises(InputError) as caught:
        asks[ask]()
    assert str(caught.value) == message
    assert not any(layer._forward_hooks for layer in net.modules())


@pytest.mark.parametrize("access", ["transfer", "labels", "logits"])
def test_layers_and_features_need_access_to_gradients(make_victim: Make, images: Tensor, access: str) -> None:
    victim = make_victim(Net(), images, access=access)
    with pytest.raises(ContractError, match="asked the victim for gradients"):
        victim.layers  # noqa: B018
    with pytest.raises(ContractError, match="asked the victim for gradients"):
        victim.features(images, ["conv"])


def test_behind_a_relaxed_defense_the_layers_are_those_that_gradients_go_through(
    make_victim: Make, images: Tensor
) -> None:
    relaxed = Relaxed(guard.model(Net()), guard.model(Net()))
    victim = make_victim(relaxed, images)
    assert list(victim.layers) == list(SHAPES)

    def loss(logits: Tensor, goal: Goal, features: Mapping[str, Tensor]) -> Tensor:
        return features["conv"].flatten(1).sum(1) + 0 * logits.sum(1)

    gradient, _, _ = victim.gradient(images, Goal(torch.zeros(8, dtype=torch.int64)), loss, ["conv"])
    assert gradient.abs().flatten(1).sum(1).min() > 0
