"""Feature style mixing: while a network is trained, its early features take on the statistics of other images'."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.distributions import Beta

from guard import Defense, InputError, hookimpl
from guard_plugins.defenses.activations import answer, listening
from guard_plugins.defenses.shape_bias import Share

_STAGES = ("layer1", "layer2")


class FeatureStyleMixing(Defense):
    """MixStyle: mixes the means and deviations of feature maps, channel by channel, with those of another image.

    In train mode only; in eval mode the network is what it is without, and its weights have the same names. The partner
    is drawn anew at every forward, as is the share that stays the image's own; no gradient goes through the statistics.
    An image is mixed with a probability of its own, where the paper draws once for a batch.

    All draws come from torch's generator of the CPU, which training seeds for every update: they are the same on
    every device, and a training that goes on meets those that it would have met. Adversaries are crafted in eval
    mode, and so on the network without it.
    """

    name = "feature-style-mixing"
    paper = "Zhou, Yang, Qiao, Xiang: Domain generalization with MixStyle, ICLR 2021"

    layers: tuple[str, ...] = ()
    """Layers after which features are mixed, by their names in the network. Where left out, layer1 and layer2 where the
    network has them, as ResNets do, and else its first two poolings."""
    share: Share = 0.5
    """Probability that an image is mixed."""
    concentration: PositiveFloat = 0.1
    """Both parameters of the Beta distribution of the share that stays the image's own; below 1 most shares are near 0
    or 1."""

    @property
    def trains(self) -> bool:
        """Always: what it changes acts in train mode only, so that it must stand before the training."""
        return True

    def modify(self, model: nn.Module, calibration: Tensor) -> nn.Module:
        """The model, in place, which mixes in train mode.

        Raises InputError for a layer that it does not have or that does not answer with feature maps (N, C, H, W), and
        where none is named in a network without layer1, layer2 and poolings.
        """
        found = _maps(model, calibration[:2])
        mixing = _Mixing(self.share, self.concentration)
        for name in self.layers or self._usual(found):
            layer = found.get(name, found.get(name.removeprefix("net.")))
            if layer is None:
                raise InputError(
                    f"defense '{self.name}': no layer '{name}' of this network answers with feature maps. "
                    f"Those that do are {', '.join(list(found)[:10]) or 'none'}"
                )
            # not register_forward_hook, whose keys count on through a process: what is cached is found by content
            layer._forward_hooks[self.name] = mixing  # type: ignore[index]
        return model

    def _usual(self, found: dict[str, nn.Module]) -> list[str]:
        poolings = [name for name, layer in found.items() if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d)]
        names = [name for name in _STAGES if name in found] or poolings[:2]
        if not names:
            raise InputError(
                f"defense '{self.name}' finds neither layer1 nor a pooling in this network. Name layers: those with "
                f"feature maps are {', '.join(list(found)[:10]) or 'none'}"
            )
        return names


@dataclass(frozen=True)
class _Mixing:
    """A forward hook."""

    share: float
    concentration: float

    def __call__(self, layer: nn.Module, inputs: object, features: Tensor) -> Tensor | None:
        return self.mixed(features) if layer.training else None

    def mixed(self, features: Tensor) -> Tensor:
        count = len(features)
        own = Beta(self.concentration, self.concentration).sample((count,))
        own = torch.where(torch.rand(count) < self.share, own, 1).to(features)[:, None, None, None]
        return remixed(features, torch.randperm(count).to(features.device), own)


def remixed(features: Tensor, partner: Tensor, own: Tensor) -> Tensor:
    """Features (N, C, H, W) with the means and deviations of their channels mixed with those of features[partner], of
    which `own` (N, 1, 1, 1) stays; where that is 1, the features to the last bit."""
    variance, mean = torch.var_mean(features.detach(), (2, 3), correction=0, keepdim=True)
    deviation = (variance + 1e-6).sqrt()
    gain = deviation[partner].lerp(deviation, own) / deviation
    return features * gain + (mean[partner].lerp(mean, own) - gain * mean)


def _maps(model: nn.Module, images: Tensor) -> dict[str, nn.Module]:
    """The layers that answer with feature maps of more than one pixel, by their names in the user's own network, in the
    order in which they run."""
    children = dict(model.named_children())
    net = children["net"] if list(children) == ["net"] else model  # which guard.model puts the network into
    layers = {name: layer for name, layer in net.named_modules() if name}
    found = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
            found[name] = layers[name]

    with listening(layers, note):
        answer(model, images)
    return found


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [FeatureStyleMixing]
