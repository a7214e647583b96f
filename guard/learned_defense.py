"""Learned defenses: what learns beside the network that it stands in front of."""

from abc import abstractmethod
from typing import ClassVar

from torch import Generator, Tensor, nn

from guard.defense import Defense, Step
from guard.learner import Learner
from guard.threat import ThreatModel


class LearnedDefense(Learner, Defense):
    """A defense that learns before it acts on images. A subclass writes `unfitted`, `objective`, `seen`, `preprocess`.

    It learns behind what was trained, in front of the network as that stands then, which is left as it is; where it
    stands left of a member that trains it is refused. Other stages have no part in what it learns on. `preprocess`
    finds what has learned in `self.module`. What it learned lies in RUN/defenses/LABEL.safetensors, which `weights`
    takes.
    """

    against: ClassVar[bool] = True
    """Whether what it learns depends on the network; where not, it learns once for all of them."""

    @abstractmethod
    def objective(self, step: Step, model: nn.Module) -> Tensor:
        """What is minimised: a scalar of the module `step.model` on the clean training images `step.images` (N, C, H,
        W) with labels `step.targets` (N,). `model` answers logits in eval mode, its parameters frozen, and lets
        gradients through. Draws come from `step.generator`; `step.note` writes down a figure of the epoch."""

    @abstractmethod
    def seen(
        self,
        module: nn.Module,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        generator: Generator,
    ) -> dict[str, Tensor]:
        """What an epoch is judged by, on training images that are held out: values (N,) by name, whose means are kept.
        The epoch with the largest mean of the first one counts. The draws are the same in each epoch."""
