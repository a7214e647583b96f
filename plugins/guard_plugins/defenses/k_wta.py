"""k-winners-take-all: activations of which only the largest in a layer are left."""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from guard import Defense, hookimpl
from guard_plugins.defenses.activations import Activation, relaxed, replaced


class Winners(Activation):
    """The largest activations of each image in a layer, and 0 in the place of all others."""

    def __init__(self, cap: float) -> None:
        super().__init__(cap)
        self.gamma: float | None = None
        """The share that is kept; where there is none, it is the ReLU that it stands for."""

    def activated(self, inputs: Tensor) -> Tensor:
        """The winners, which may be negative where more are kept than are positive."""
        if self.gamma is None:
            return super().activated(inputs)
        rows = inputs.flatten(1)
        count = max(int(self.gamma * rows.shape[1]), 1)
        lowest = rows.detach().topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
        return torch.where(rows >= lowest, rows, 0).view_as(inputs)


class KWTA(Defense):
    """Puts k-winners-take-all in the place of each ReLU: a layer keeps the k largest activations of an image, over all
    its channels and places together, and all others become 0.

    Finds ReLUs as `truncated-relu` does; one with a cap loses it. What is kept is not rectified. Whatever is as large
    as the k-th largest is kept (>=, as the authors have it), so that ties leave more than k, and do not depend on their
    order. k is the share of the layer's size, rounded down as in the authors' code, and at least 1. A network whose
    ReLUs were taken away has to learn anew, so that it is trained, or fine-tuned, where this stands, as in the paper.

    The winners change from one image to the next one beside it, so that the loss jumps and its gradient says little.
    `relax` gives the attacker the gradient of a plain ReLU, which has one for every positive activation, winner or not.
    Little robustness is known to remain under attacks that do not rely on the gradient (Tramer et al. 2020,
    arXiv 2002.08347).
    """

    name = "k-wta"
    paper = "Xiao, Zhong, Zheng: Enhancing adversarial defense by k-winners-take-all, ICLR 2020"

    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The share of a layer's activations that is kept; the authors take 0.1 and 0.2."""

    @property
    def trains(self) -> bool:
        """It does."""
        return True

    def modify(self, model: nn.Module, calibration: Tensor) -> nn.Module:
        """The model with k-winners-take-all, in place where it can be.

        `calibration`: some images. Raises InputError where there is no ReLU to replace, and where replacing changes
        more than that.
        """
        model, found = replaced(model, calibration, Winners, self)
        for layer in found.values():
            layer.gamma = self.gamma
        return model

    def relax(self, model: nn.Module) -> nn.Module:
        """A copy with the same forward and the backward of plain ReLUs."""
        return relaxed(model)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [KWTA]
