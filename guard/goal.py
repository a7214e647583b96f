"""Goal: what the adversary wants of each image."""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Goal:
    """The aim for each image of a batch: any class but its label, or, where `targets` are given, that target.

    `goal[keep]` takes some of the images, as `victim[keep]` and `rng[keep]` do.
    """

    labels: Tensor
    """int64 (N,): the true classes."""
    targets: Tensor | None = None
    """int64 (N,): the classes to reach; None for an untargeted goal."""
    aims: Tensor | None = None
    """int64 (N,): the classes that losses move towards, where that differs from what counts as reached."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, keep: Tensor) -> "Goal":
        targets = None if self.targets is None else self.targets[keep]
        return Goal(self.labels[keep], targets, None if self.aims is None else self.aims[keep])

    def aim(self, targets: Tensor) -> "Goal":
        """The same goal, with losses that move towards `targets`; `reached` stays as it is."""
        return replace(self, aims=targets)

    @property
    def towards(self) -> Tensor | None:
        """The classes that losses move towards; None where they only move away from the label."""
        return self.targets if self.aims is None else self.aims

    def margin(self, logits: Tensor) -> Tensor:
        """How far the logits are from the goal, shape (N,): positive while the adversary has not reached it."""
        if self.targets is None:
            return lead(logits, self.labels)
        return -lead(logits, self.targets)

    def reached(self, logits: Tensor) -> Tensor:
        """Whether the logits (N, K) fulfil the goal, bool (N,).

        A tie at the top counts as an error of the model: it fulfils an untargeted goal and no targeted one.
        """
        if self.targets is None:
            return lead(logits, self.labels) <= 0
        return lead(logits, self.targets) > 0


def lead(logits: Tensor, classes: Tensor) -> Tensor:
    """The logit of each image's class less the largest other one, shape (N,)."""
    own = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], -float("inf")).amax(1)
    return own.squeeze(1) - others


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label alone has the largest logit, bool (N,); a tie or a NaN is an error."""
    return lead(logits, labels) > 0
