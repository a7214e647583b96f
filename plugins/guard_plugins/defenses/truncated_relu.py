"""Truncated ReLU: activations that cannot grow without bound."""

import copy
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from guard import Defense, InputError, hookimpl
from guard_plugins.defenses.activations import answer, kept, layers, listening, truncate

_log = logging.getLogger(__name__)

_BATCH = 64  # images per forward while a network is calibrated


class TruncatedReLU(Defense):
    """Puts min(max(x, 0), cap) in the place of each ReLU, so that no activation can grow much.

    Replaces nn.ReLU, nn.ReLU6 (which keeps its 6 where that is lower) and, where torch.fx can trace the code they stand
    in, F.relu, F.relu6, torch.relu and Tensor.relu; logs what it replaced and what it did not. A cap that is not given
    is calibrated: a percentile of the layer's activations on clean training images, in the network as it is handed in
    (which is an untrained one in a stack that trains it afterwards).

    A saturated unit has no gradient, so attacks that follow the gradient look weak. `relax` gives the attacker the
    gradient of a plain ReLU, straight through the cap; no robustness is known to remain then (Carlini and Wagner 2017,
    arXiv 1711.08478).
    """

    name = "truncated-relu"
    paper = "Zantedeschi, Nicolae, Rawat: Efficient defenses against adversarial attacks, AISec 2017"

    cap: PositiveFloat | None = None
    """Largest activation, the same for every layer; calibrated for each layer where left out."""
    percentile: Annotated[float, Field(gt=0, le=100)] = 99
    """Where `cap` is left out: the percentile of a layer's activations, zeros included, that becomes its cap."""

    def modify(self, model: nn.Module, calibration: Tensor) -> nn.Module:
        """The model with truncated activations, in place where it can be. The caps are part of its state dict.

        `calibration`: clean training images (N, C, H, W), some even where `cap` is given. Raises InputError where
        there is no ReLU to replace, where replacing changes more than the cap, and where a calibrated cap would be 0.
        """
        first, title = calibration[:_BATCH], type(getattr(model, "net", model)).__name__
        before = answer(model, first)
        model = truncate(model)
        found, others = layers(model), kept(model, first)
        if not found:
            raise InputError(
                f"defense '{self.name}' finds no ReLU to replace in {title}, "
                f"which has {', '.join(others[:3]) or 'no activations'}. Write its activations as nn.ReLU modules"
            )
        if not torch.allclose(before, answer(model, first), rtol=1e-4, atol=1e-5):
            raise InputError(
                f"defense '{self.name}': {title} uses a tensor again that a ReLU has changed in place. "
                f"Write its ReLUs without inplace"
            )
        caps = self._calibrated(model, calibration) if self.cap is None else dict.fromkeys(found, self.cap)
        for name, cap in caps.items():
            found[name].cap.clamp_(max=cap)
        _log.info("%s: replaced %s; kept %s", self.name, ", ".join(found), ", ".join(others) or "none")
        return model

    def relax(self, model: nn.Module) -> nn.Module:
        """A copy with the same forward and, beyond each cap, the backward of a plain ReLU."""
        model = copy.deepcopy(model)
        for layer in layers(model).values():
            layer.straight = True
        return model

    def _calibrated(self, model: nn.Module, calibration: Tensor) -> dict[str, float]:
        """The percentile of each layer that runs, exact; only the activations above it are kept on the way."""
        found = layers(model)
        totals: Counter[str] = Counter()
        with listening(found, lambda name, output: totals.update({name: output.numel() * len(calibration)})):
            answer(model, calibration[:1])
        ranks = {name: self.percentile / 100 * (total - 1) for name, total in totals.items()}
        highest: dict[str, Tensor] = {}

        def collect(name: str, output: Tensor) -> None:
            values = torch.cat([highest[name], output.flatten()]) if name in highest else output.flatten()
            highest[name] = values.topk(min(len(values), totals[name] - int(ranks[name]))).values

        with listening(found, collect):
            for images in calibration.split(_BATCH):
                answer(model, images)
        caps = {}
        for name, values in highest.items():
            below, part = values[-1], ranks[name] % 1
            caps[name] = float(below.lerp(values[-2], part) if part else below)
            if caps[name] == 0:
                raise InputError(
                    f"defense '{self.name}': percentile {self.percentile:g} of the activations of '{name}' is 0, which "
                    f"would switch it off. Give a higher percentile, or a cap"
                )
        return caps


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [TruncatedReLU]
