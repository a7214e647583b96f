"""Truncated ReLU: activations that cannot grow without bound."""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from guard import Defense, InputError, hookimpl
from guard_plugins.defenses.activations import BATCH, Activation, answer, listening, positive, relaxed, replaced

_LEAST = 1e-3  # a learned cap's lowest value: with one of 0 a layer would say nothing


class Truncated(Activation):
    """min(max(x, 0), cap)."""

    cap: Tensor

    def __init__(self, cap: float) -> None:
        super().__init__(cap)
        self.register_buffer("cap", torch.tensor(cap))

    def lower(self, cap: float) -> None:
        """Make the cap this where it is higher."""
        with torch.no_grad():
            self.cap.clamp_(max=cap)

    def learn(self) -> None:
        """Make the cap a parameter."""
        cap = self.cap
        del self.cap
        self.cap = nn.Parameter(cap)

    def activated(self, inputs: Tensor) -> Tensor:
        """The truncated activations."""
        cap = _bounded(self.cap) if isinstance(self.cap, nn.Parameter) else self.cap
        return positive(inputs).clamp(max=cap.to(inputs.dtype))


def _bounded(cap: Tensor) -> Tensor:
    """A learned cap, at least `_LEAST`; down there it only has a gradient that lets it grow again."""
    low = cap.detach() <= _LEAST
    bounded = cap.detach().clamp(min=_LEAST) + (cap - cap.detach())
    if bounded.requires_grad:
        bounded.register_hook(lambda gradient: torch.where(low, gradient.clamp(max=0), gradient))
    return bounded


class TruncatedReLU(Defense):
    """Puts min(max(x, 0), cap) in the place of each ReLU, so that no activation can grow much.

    Replaces nn.ReLU, nn.ReLU6 (which keeps its 6 where that is lower) and, where torch.fx can trace the code they stand
    in, F.relu, F.relu6, torch.relu and Tensor.relu; logs what it replaced and what it did not. A cap that is not given
    is calibrated: a percentile of the layer's activations on clean training images, in the network as it is handed in
    (which is an untrained one in a stack that trains it afterwards).

    With `learnable` the cap is where each layer's begins, and is trained with the network (PACT, Choi et al. 2018,
    arXiv 1805.06085): its gradient is the sum of those of the activations above it, the training's weight decay is the
    paper's decay of caps, and it is never below 0.001. A network is then trained, or fine-tuned, where this stands.

    A saturated unit has no gradient, so attacks that follow the gradient look weak. `relax` gives the attacker the
    gradient of a plain ReLU, straight through the cap; no robustness is known to remain then (Carlini and Wagner 2017,
    arXiv 1711.08478).
    """

    name = "truncated-relu"
    paper = "Zantedeschi, Nicolae, Rawat: Efficient defenses against adversarial attacks, AISec 2017"

    cap: PositiveFloat | None = None
    """Largest activation, the same for every layer, or where learnable caps begin; calibrated where left out."""
    percentile: Annotated[float, Field(gt=0, le=100)] = 99
    """Where `cap` is left out: the percentile of a layer's activations, zeros included, that becomes its cap."""
    learnable: bool = False
    """Whether the caps are trained with the network."""

    @property
    def trains(self) -> bool:
        """Where the caps are learnable."""
        return self.learnable

    def modify(self, model: nn.Module, calibration: Tensor) -> nn.Module:
        """The model with truncated activations, in place where it can be. The caps are part of its state dict.

        `calibration`: clean training images (N, C, H, W), some even where `cap` is given. Raises InputError where
        there is no ReLU to replace, where replacing changes more than the cap, and where a calibrated cap would be 0.
        """
        model, found = replaced(model, calibration, Truncated, self)
        caps = self._calibrated(model, found, calibration) if self.cap is None else dict.fromkeys(found, self.cap)
        for name, cap in caps.items():
            found[name].lower(cap)
            if self.learnable:
                found[name].learn()
        return model

    def relax(self, model: nn.Module) -> nn.Module:
        """A copy with the same forward and, beyond each cap, the backward of a plain ReLU."""
        return relaxed(model)

    def _calibrated(self, model: nn.Module, found: dict[str, Truncated], calibration: Tensor) -> dict[str, float]:
        """The percentile of each layer that runs, exact; only the activations above it are kept on the way."""
        totals: Counter[str] = Counter()
        with listening(found, lambda name, output: totals.update({name: output.numel() * len(calibration)})):
            answer(model, calibration[:1])
        ranks = {name: self.percentile / 100 * (total - 1) for name, total in totals.items()}
        highest: dict[str, Tensor] = {}

        def collect(name: str, output: Tensor) -> None:
            values = torch.cat([highest[name], output.flatten()]) if name in highest else output.flatten()
            highest[name] = values.topk(min(len(values), totals[name] - int(ranks[name]))).values

        with listening(found, collect):
            for images in calibration.split(BATCH):
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
