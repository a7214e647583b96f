"""Feature denoising: blocks of non-local means between the layers of a network."""

import math
import re
from collections.abc import Iterable
from difflib import get_close_matches

from torch import Generator, Tensor, nn

from guard import Defense, InputError, hookimpl
from guard_plugins.defenses.activations import answer, listening

_STAGE = re.compile(r"layer\d+")
_FEW = 8  # names in a suggestion


class NonLocalMeans(nn.Module):
    """Adds to features (N, C, H, W) what a 1 x 1 convolution and a BatchNorm make of their non-local means.

    The mean at a place is over all places, weighted by a softmax of the products of their embeddings, which are 1 x 1
    convolutions to C / 2 channels (`theta` of the place, `phi` of the others), divided by the root of C / 2. Memory
    grows with (H W)^2.
    """

    def __init__(self, channels: int, generator: Generator) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.theta = _convolution(channels, inner, 0.01, generator)
        self.phi = _convolution(channels, inner, 0.01, generator)
        self.conv = _convolution(channels, channels, math.sqrt(2 / channels), generator)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Tensor) -> Tensor:
        """The denoised features."""
        theta, phi = self.theta(features).flatten(2), self.phi(features).flatten(2)
        weights = (theta.transpose(1, 2) @ phi / math.sqrt(self.theta.out_channels)).softmax(2)
        means = (features.flatten(2) @ weights.transpose(1, 2)).view_as(features)
        added: Tensor = self.norm(self.conv(means))
        return features + added


class Denoised(nn.Module):
    """A layer with a denoising block behind it."""

    def __init__(self, layer: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.layer, self.denoising = layer, block
        self.train(layer.training)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The layer's answer, denoised."""
        denoised: Tensor = self.denoising(self.layer(*inputs))
        return denoised


class FeatureDenoising(Defense):
    """Puts a block of non-local means behind stages of a network, which it learns with the network's own weights.

    By default one behind each residual stage of a ResNet (layer1, layer2, ...: `resnet18-cifar`, torchvision's), as in
    the paper; of other networks, behind the layers that `after` names. Each block is the paper's embedded Gaussian one,
    without biases as in the authors' code, and begins as one that changes nothing (its BatchNorm's weights are 0). A
    network is trained, or fine-tuned, where this stands. The paper trains it adversarially: put `adversarial-training`
    behind it, in the same stack; on its own it is not claimed to make anything robust.
    """

    name = "feature-denoising"
    paper = "Xie, Wu, van der Maaten, Yuille, He: Feature denoising for improving adversarial robustness, CVPR 2019"

    after: tuple[str, ...] = ()
    """Layers that get a block behind them, by their names in the network; each answers with maps (N, C, H, W)."""

    @property
    def trains(self) -> bool:
        """It does."""
        return True

    def modify(self, model: nn.Module, calibration: Tensor) -> nn.Module:
        """The model with those layers wrapped, in place: `layer1` is the denoised one then, `layer1.layer` the layer.

        `calibration`: some images. Raises InputError for a network without residual stages where none are named, for
        an unknown layer, and for one that answers with anything but maps. The blocks begin the same in every run.
        """
        net = getattr(model, "net", model)
        known = {name: layer for name, layer in net.named_modules() if name} if isinstance(net, nn.Module) else {}
        names = self.after or tuple(name for name in known if _STAGE.fullmatch(name))
        title = type(net).__name__
        if not names:
            raise InputError(
                f"defense '{self.name}' finds no residual stages (layer1, layer2, ...) in {title}. "
                f"Name layers under after. {_suggestion('', known)}"
            )
        for name in names:
            if name not in known:
                raise InputError(f"defense '{self.name}': {title} has no layer '{name}'. {_suggestion(name, known)}")
        outputs: dict[str, Tensor] = {}
        with listening({name: known[name] for name in names}, lambda name, output: outputs.update({name: output})):
            answer(model, calibration[:2])
        generator, wrapped = Generator().manual_seed(0), {}
        for name in dict.fromkeys(names):
            output = outputs.get(name)
            if not isinstance(output, Tensor) or output.dim() != 4:
                what = "does not run" if output is None else f"answers with {_said(output)}, not with maps (N, C, H, W)"
                raise InputError(f"defense '{self.name}': layer '{name}' of {title} {what}. Name another one in after")
            block = NonLocalMeans(output.shape[1], generator).to(output.device, output.dtype)
            wrapped[known[name]] = Denoised(known[name], block)
        for module in list(net.modules()):
            for child_name, child in list(module._modules.items()):
                if child in wrapped:
                    setattr(module, child_name, wrapped[child])
        return model


def _convolution(channels: int, outputs: int, std: float, generator: Generator) -> nn.Conv2d:
    """A 1 x 1 convolution without bias, its weights normal; no global generator draws."""
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, channels, outputs, 1, bias=False)
    nn.init.normal_(layer.weight, std=std, generator=generator)
    return layer


def _said(output: object) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _suggestion(word: str, known: Iterable[str]) -> str:
    """The nearest known name, or some: those that are nested least come first."""
    near = get_close_matches(word, known, n=1)
    some = sorted(known, key=lambda name: name.count("."))[:_FEW]
    return f"Did you mean '{near[0]}'?" if near else f"Known are {', '.join(some) or 'none'}"


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [FeatureDenoising]
