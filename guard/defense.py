"""Defense: a base of no-ops, one method per moment at which a defense can act."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from guard.component import Component
from guard.errors import InputError
from guard.rng import Rng
from guard.threat import ThreatModel


@dataclass
class Step:
    """One weight update, as `Defense.update` sees it."""

    model: nn.Module
    images: Tensor
    adversarial: Tensor
    """What the loss is taken on; a defense that replays a batch writes its next point here before it proceeds. Where it
    requires a gradient, proceeding leaves the loss's there, of the mean over the batch."""
    targets: Tensor
    objective: Callable[[], Tensor]
    """The stack's loss on the batch as it stands here, with its graph; nothing is updated."""
    threat: ThreatModel
    epoch: int
    """From 0."""
    epochs: int
    generator: Generator
    memory: dict[str, Tensor]
    """What defenses keep from update to update; it is saved with the training, and given back where that is resumed."""
    notes: dict[str, Tensor] = field(default_factory=dict)
    """What `note` wrote in this epoch: sum and count by name."""

    def note(self, name: str, values: Tensor) -> None:
        """Write down a figure of each image of the batch (N,); the epoch's record shows their mean under that name."""
        sums = torch.stack([values.detach().double().sum(), values.new_tensor(len(values), dtype=torch.float64)])
        self.notes[name] = self.notes[name] + sums if name in self.notes else sums


class Defense(Component):
    """A defense. A subclass names itself and overrides the moments it acts at.

    Targets are int64 (N,), or probabilities (N, K) where an augmentation mixes labels.
    """

    kind: ClassVar[str] = "defense"
    differentiable: ClassVar[bool] = True
    """Whether gradients through `preprocess` are true; where not, an attack's backward takes `surrogate`."""
    randomized: ClassVar[bool] = False
    """Whether `preprocess` draws from its `rng`."""
    mixes_labels: ClassVar[bool] = False
    """Whether `augment` mixes labels: its targets are then probabilities (N, K), one-hot where nothing mixed before."""

    def modify(self, model: nn.Module, calibration: Tensor) -> nn.Module:
        """Change the architecture. `calibration`: clean training images; `model` may be changed in place."""
        return model

    def relax(self, model: nn.Module) -> nn.Module:
        """The attacker's stand-in for the modified model's backward; the model itself by default."""
        return model

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Change a training batch."""
        return images, targets

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """The adversarial images that a training batch is joined by."""
        return images

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        """The training objective, a scalar: cross-entropy on the adversarial images by default."""
        return F.cross_entropy(model(adversarial), targets)

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        """One weight update around `proceed()`, which does what stands inside and returns the loss."""
        return proceed()

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """Change the images before the model sees them, at inference."""
        return images

    def surrogate(self, images: Tensor, rng: Rng) -> Tensor:
        """A differentiable stand-in for `preprocess`: itself where it is differentiable, else the identity."""
        return self.preprocess(images, rng) if self.differentiable else images

    @classmethod
    def overrides(cls, *moments: str) -> bool:
        """Whether the class acts at one of these moments."""
        return any(getattr(cls, moment) is not getattr(Defense, moment) for moment in moments)

    @property
    def trains(self) -> bool:
        """Whether it acts while the network is trained."""
        return self.overrides("augment", "adversary", "loss", "update")


class Stack(Defense):
    """Defenses that act together, from left to right; itself a defense."""

    members: tuple[Defense, ...] = ()

    @property
    def label(self) -> str:
        """The members' names."""
        return " + ".join(member.name for member in self.members) or "none"

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether every member is."""
        return all(member.differentiable for member in self.members)

    @property
    def randomized(self) -> bool:  # type: ignore[override]
        """Whether any member is."""
        return any(member.randomized for member in self.members)

    @property
    def mixes_labels(self) -> bool:  # type: ignore[override]
        """Whether any member does."""
        return any(member.mixes_labels for member in self.members)

    @property
    def trains(self) -> bool:
        """Whether any member does."""
        return any(member.trains for member in self.members)

    @property
    def hardens(self) -> bool:
        """Whether any member trains for robustness, not only on other images."""
        return any(member.overrides("adversary", "loss", "update") for member in self.members)

    @property
    def stages(self) -> tuple[Defense, ...]:
        """The members that act on images at inference."""
        return tuple(member for member in self.members if member.overrides("preprocess"))

    def split(self) -> tuple["Stack", "Stack"]:
        """The part up to the last member that trains, and the part that acts on what was trained."""
        last = max((i for i, member in enumerate(self.members) if member.trains), default=-1)
        return Stack(members=self.members[: last + 1]), Stack(members=self.members[last + 1 :])

    def modify(self, model: nn.Module, calibration: Tensor) -> nn.Module:
        """By every member, left to right."""
        for member in self.members:
            model = member.modify(model, calibration)
        return model

    def relax(self, model: nn.Module) -> nn.Module:
        """By every member, left to right."""
        for member in self.members:
            model = member.relax(model)
        return model

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """By every member, left to right."""
        for member in self.members:
            images, targets = member.augment(images, targets, generator)
        return images, targets

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """Of the one member that brings its own."""
        return self._acting("adversary").adversary(model, images, targets, threat, generator)

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        """Of the one member that brings its own."""
        return self._acting("loss").loss(model, images, adversarial, targets, generator)

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        """By every member, the left one outermost."""
        for member in reversed(self.members):
            proceed = _around(member, step, proceed)
        return proceed()

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """By every member, left to right."""
        for number, member in enumerate(self.stages):
            images = member.preprocess(images, rng.fold(number))
        return images

    def surrogate(self, images: Tensor, rng: Rng) -> Tensor:
        """By every member, left to right, with the draws of `preprocess`."""
        for number, member in enumerate(self.stages):
            images = member.surrogate(images, rng.fold(number))
        return images

    def _acting(self, moment: str) -> Defense:
        return next((member for member in self.members if member.overrides(moment)), Defense())


def _around(member: Defense, step: Step, proceed: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: member.update(step, proceed)


def stack(defenses: Defense | Sequence[Defense]) -> Stack:
    """One defense or several as a stack; nested stacks are flattened, 'none' and its like drop out.

    Raises InputError for one that acts at no moment, and where two bring their own adversary, or their own loss.
    """
    parts: list[Defense] = []
    for item in [defenses] if isinstance(defenses, Defense) else defenses:
        parts.extend(item.members if isinstance(item, Stack) else [item])
    moments = ("modify", "augment", "adversary", "loss", "update", "preprocess")
    for part in parts:
        if part.name != "none" and not part.overrides(*moments):
            raise InputError(
                f"defense '{part.name}' does nothing: it has none of {', '.join(moments)}. Name its method so"
            )
    for moment in ("adversary", "loss"):
        acting = [part.name for part in parts if part.overrides(moment)]
        if len(acting) > 1:
            raise InputError(
                f"defenses '{acting[0]}' and '{acting[1]}' both bring their own {moment}; a stack takes one of them"
            )
    return Stack(members=tuple(part for part in parts if part.overrides(*moments)))
