"""Counts: what each image of a call has cost."""

import torch
from torch import Tensor


class Counts:
    """What each image has cost so far, whether its gradients were finite, and what each part of the attack did."""

    def __init__(self, images: int, device: torch.device) -> None:
        self.forwards = torch.zeros(images, dtype=torch.int64, device=device)
        self.backwards = torch.zeros_like(self.forwards)
        self.broke = torch.zeros(images, dtype=torch.bool, device=device)
        """Images that this part of an attack brought to their goal."""
        self.tried = torch.zeros_like(self.broke)
        """Images that this part of an attack was let at."""
        self.undecided = torch.zeros_like(self.broke)
        """Images that the attack stopped at although they might still fall."""
        self.parts: dict[str, Counts] = {}
        """Of each part of an attack, by its name, in their order."""
        self.unusable = torch.zeros_like(self.forwards)
        """Gradients with NaN or infinity."""

    @property
    def broken(self) -> Tensor:
        """Images that a gradient with NaN or infinity was computed for, bool (N,)."""
        return self.unusable > 0

    def part(self, name: str) -> "Counts":
        """The counts of one part of an attack; asked for again, they go on."""
        if name not in self.parts:
            self.parts[name] = Counts(len(self.forwards), self.forwards.device)
        return self.parts[name]

    def add_forward(self, rows: Tensor) -> None:
        """Count a forward of the images in `rows`, which may repeat."""
        self.forwards.index_add_(0, rows, torch.ones_like(rows))

    def add_backward(self, rows: Tensor, finite: Tensor) -> None:
        """Count a backward of the images in `rows`, which may repeat; never waits for the device."""
        self.backwards.index_add_(0, rows, torch.ones_like(rows))
        self.unusable.index_add_(0, rows, (~finite).to(rows.dtype))
