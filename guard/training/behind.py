"""Behind: a network that is trained behind a stack's preprocesses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from guard.layers import Around
from guard.rng import Rng
from guard.stage import Stage, bridged


class Behind(Around):
    """A network with a stack's stages in front of it while it is trained."""

    def __init__(self, stages: Sequence[Stage], model: nn.Module) -> None:
        super().__init__()
        self.inner, self._stages = model, tuple(stages)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images after all stages, whose draws follow from torch's own generator, which training seeds."""
        rng = Rng(
            int(torch.randint(2**62, ())), torch.arange(len(images), device=images.device), tuple(images.shape[1:])
        )
        logits: Tensor = self.inner(bridged(self._stages, images, rng))
        return logits


def behind(stages: Sequence[Stage], model: nn.Module) -> nn.Module:
    """The network as it is trained: behind the stages, where there are any."""
    return Behind(stages, model) if stages else model
