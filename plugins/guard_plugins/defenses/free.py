"""Free adversarial training: each batch several times, each time a step of the weights and of the perturbation."""

from collections.abc import Callable, Iterable

import torch
from pydantic import PositiveInt
from torch import Generator, Tensor, nn

from guard import Defense, InputError, Step, ThreatModel, hookimpl
from guard_plugins.defenses.crafting import WithRadius

_KEPT = "free.perturbation"


class Free(WithRadius):
    """Replays each batch; one backward moves the weights, and the perturbation by epsilon along the gradient's sign.

    The perturbation lives on over replays and batches: row i of the next batch starts with that of row i, a smaller
    batch uses the first rows. Epochs are yours: divide those of plain training by `replays`, for as many updates.
    Nothing is crafted beforehand: the gradient is the update's own, with the network in train mode.

    After each step and each change of batch, image and perturbation are projected onto ball and [0, 1] together; in the
    paper only the perturbation is, onto the ball (the authors' code also clamps the image that the network sees). For
    l2 and l1 a step is epsilon long along the steepest direction.

    In a stack it is the adversary, so that it stands with no other one. A defense to its right acts in each replay, one
    to its left (`awp`) once around all of them.
    """

    name = "free"
    paper = (
        "Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein: Adversarial training for free!, "
        "NeurIPS 2019"
    )

    replays: PositiveInt = 8
    """How often each batch is trained on (m in the paper)."""

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """The images as they are, which says that they are not another defense's to perturb."""
        return images

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        """All replays; the loss of the last. Raises InputError where epsilon does not fit the threat's norm."""
        threat, images = self.own(step.threat, finite=True), step.images
        kept = step.memory.get(_KEPT, images[:0]).to(images)
        moved, rest = kept[: len(images)], kept[len(images) :]
        moved = torch.cat([moved, torch.zeros_like(images[len(moved) :])])
        for _ in range(self.replays):
            point = threat.project(images + moved, images)
            step.adversarial = point.clone().requires_grad_()
            loss = proceed()
            gradient = step.adversarial.grad
            if gradient is None:
                raise InputError(f"defense '{self.name}' stands with a loss of the clean images only. Take one away")
            moved = threat.project(point + threat.steepest_ascent(gradient, threat.epsilon, point), images) - images
        step.memory[_KEPT] = torch.cat([moved, rest])
        return loss


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [Free]
