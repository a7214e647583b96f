"""TAP: which layers of a network it takes where none are named, and which it refuses."""

from collections.abc import Callable

import pytest
import torch
from guard_plugins.attacks.tap import TAP, default_layers
from torch import Tensor, nn

import guard
from guard import Goal, InputError, ThreatModel, Victim
from guard.layers import shapes

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Small = Callable[..., nn.Module]
Perturb = Callable[..., Tensor]
LINF = ThreatModel(norm="linf", epsilon=0.1)


class Block(nn.Module):
    """Residual; the first convolution strides."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.utils.skip_init(nn.Conv2d, inner, outer, 3, stride, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.utils.skip_init(nn.Conv2d, outer, outer, 3, 1, 1)
        self.short = nn.utils.skip_init(nn.Conv2d, inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.relu(self.conv2(self.relu(self.conv1(x))) + self.short(x))
        return total


def conv(inner: int, outer: int, stride: int) -> nn.Module:
    return nn.utils.skip_init(nn.Conv2d, inner, outer, 3, stride, 1)


class Center(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images - 0.5


class Tokens(nn.Module):
    """Patches, then as many equal blocks as a small transformer has."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.utils.skip_init(nn.Conv2d, 3, 8, 4, 4)
        self.blocks = nn.Sequential(*(nn.utils.skip_init(nn.Linear, 8, 8) for _ in range(7)))
        self.head = nn.utils.skip_init(nn.Linear, 8, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.patches(images).flatten(2).transpose(1, 2)).mean(1))
        return logits


def linear_layer(inner: int, outer: int) -> nn.Module:
    return nn.utils.skip_init(nn.Linear, inner, outer)


PLAIN = nn.Sequential(
    *(Center(), conv(3, 4, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2), conv(4, 6, 1), nn.ReLU(inplace=True)),
    *(nn.MaxPool2d(2), conv(6, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear_layer(8, 4)),
)
RESIDUAL = nn.Sequential(
    *(Center(), conv(3, 4, 2), nn.ReLU(), nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))),
    *(nn.Sequential(Block(4, 8, 2), Block(8, 8, 1)), nn.Sequential(Block(8, 8, 2)), nn.AdaptiveAvgPool2d(1)),
    *(nn.Flatten(), linear_layer(8, 4)),
)
STRIDED = nn.Sequential(*(nn.Sequential(conv(4 if i else 3, 4, 1), conv(4, 4, 2)) for i in range(3)))
PERCEPTRON = nn.Sequential(
    *(nn.Flatten(), linear_layer(3072, 9), nn.ReLU(), linear_layer(9, 5), nn.ReLU(), linear_layer(5, 4))
)


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        pytest.param(PLAIN, ("2", "5", "8"), id="cnn"),
        pytest.param(RESIDUAL, ("3", "4", "5"), id="resnet"),
        pytest.param(STRIDED, ("0.0", "0", "1", "2"), id="stages-that-stride-at-their-end"),
        pytest.param(Tokens(), ("patches", "blocks.3", "blocks.5", "blocks"), id="transformer"),
        pytest.param(PERCEPTRON, ("1", "2", "3", "4"), id="perceptron"),
        pytest.param(nn.Sequential(nn.Flatten(), linear_layer(3072, 4)), (), id="linear"),
        pytest.param(Center(), (), id="nothing-learned"),
    ],
)
def test_layers_are_found_without_being_named(net: nn.Module, expected: tuple[str, ...]) -> None:
    assert default_layers(shapes(net.eval(), torch.zeros(2, 3, 32, 32))) == expected


def test_channels_may_come_last() -> None:
    sides = {"embed": 56, "stage1": 28, "stage2": 14, "stage3": 7}
    layers = {name: (side, side, 5376 // side) for name, side in sides.items()}
    assert default_layers(layers) == tuple(sides)


def test_a_model_without_modules_has_no_features(
    make_victim: Make, images: Tensor, goal: Goal, perturb: Perturb
) -> None:
    class Bare(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :4]

    with pytest.raises(InputError, match=r"^attack 'tap' finds no layers to compare: .* or give feature_weight: 0$"):
        perturb(TAP(), make_victim(Bare(), images), images, goal, LINF)
    perturb(TAP(feature_weight=0), make_victim(Bare(), images), images, goal, LINF)


def test_an_unknown_layer_is_named_with_the_nearest(
    make_victim: Make, images: Tensor, goal: Goal, small: Small, perturb: Perturb
) -> None:
    with pytest.raises(InputError) as caught:
        perturb(TAP(layers=("secnd",)), make_victim(guard.model(small()), images), images, goal, LINF)
    assert str(caught.value) == "the model has no layer 'secnd'. Did you mean 'second'?"
