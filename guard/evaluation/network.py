"""Network: a defended model as it is asked, and the conditions under which foreign code runs."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from guard.errors import blamed
from guard.evaluation.memory import halving
from guard.execution import batch_size, faster
from guard.layers import held
from guard.precision import full_precision
from guard.rng import Rng, seeded
from guard.stage import Stage, bridged
from guard.victim import Access

ATTACK, DEFENSE, SCORING, TARGETS, OPAQUE, CHOOSING = range(6)  # streams: none may see another's draws


@dataclass(frozen=True)
class Network:
    """A model behind the stages that act on its images."""

    model: nn.Module
    stages: tuple[Stage, ...] = ()
    access: Access = "gradients"
    key: str | None = None
    """Of its content; None where it cannot be hashed, and then nothing about it is kept."""
    opaque: bool = False
    """Whether something in it draws that does not say so, such as from torch's own generators."""
    _twin: list[nn.Module] = field(default_factory=list, compare=False, repr=False)
    _batch: list[int] = field(default_factory=list, compare=False, repr=False)

    def search(self, images: Tensor) -> nn.Module:
        """The model in the fastest execution there is for it; `images` are a few that it is tried on, once."""
        if not self._twin:
            self._twin.append(faster(self.model, images[:4]))
        return self._twin[0]

    def batch_size(self, images: Tensor) -> int:
        """How many images to give it at once: 256 on a GPU, on a CPU as many as its layers stay small with."""
        if images.device.type != "cpu":
            return 256
        if not self._batch:
            with held(self.model), seeded(0, images.device):
                self._batch.append(batch_size(self.model, images[:1], 256))
        return self._batch[0]

    @property
    def randomized(self) -> bool:
        """Whether its answers are drawn."""
        return self.opaque or any(stage.randomized for stage in self.stages)

    def logits(self, images: Tensor, rng: Rng, seed: int = 0) -> Tensor:
        """What it answers: a fresh forward in eval mode without gradients, in full precision.

        `seed`: another one gives other draws to what draws from torch's own generators. Raises ContractError where it
        crashes.
        """

        def forward(rows: Tensor) -> Tensor:
            some, draws = (images, rng) if len(rows) == len(images) else (images[rows], rng[rows])
            with (
                blamed("the model"),
                held(self.model),
                torch.no_grad(),
                full_precision(images.device),
                seeded(opaque(draws) + seed, images.device),
            ):
                logits: Tensor = self.model(bridged(self.stages, some, draws))
            return logits

        return torch.cat(halving(forward, torch.arange(len(images), device=images.device)))


def opaque(rng: Rng) -> int:
    """The seed for what draws from torch's own generators: of the first image's key, for such draws know no image."""
    return int(rng.fold(OPAQUE).integers(2**31, shape=())[0])
