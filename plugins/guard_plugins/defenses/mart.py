"""MART: more weight on what the network gets wrong."""

from collections.abc import Iterable

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Generator, Tensor, nn

from guard import Attack, Defense, InputError, hookimpl
from guard_plugins.attacks.pgd import PGD
from guard_plugins.defenses.adversarial_training import AdversarialTraining
from guard_plugins.defenses.trades import divergence


class MART(AdversarialTraining):
    """Trains on BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)), the mean over the batch.

    BCE is -log p_y(x') - log(1 - max over k other than y of p_k(x')), the boosted cross-entropy. The gradient goes
    through x and x' everywhere, also through the weight 1 - p_y(x), as in the authors' code. They add 1e-12 to 1e-4
    inside the logarithms, which bounds them at a confident error; here all are logarithms of softmaxes and need none.

    x' is PGD's from a random start, as the paper says (the code starts a normal draw of 0.001 away), crafted with
    BatchNorm in eval mode; the loss is taken in train mode, on x and x' in a forward each.
    """

    name = "mart"
    paper = (
        "Wang, Zou, Yi, Bailey, Ma, Gu: Improving adversarial robustness requires revisiting misclassified examples, "
        "ICLR 2020"
    )

    attack: Attack = PGD(steps=10)
    """Crafts the adversarial images: any attack on gradients, logits or labels, by name or mapping."""
    beta: NonNegativeFloat = 5.0
    """Weight of the divergence (lambda in the paper); the authors take 6 for wide networks."""

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        """The sum of both terms. Raises InputError for soft targets, which have no class to be wrong about."""
        if targets.dim() > 1:
            raise InputError(
                f"defense '{self.name}' needs one label for each image; an augmentation or label smoothing mixes them. "
                f"Leave that out, or use trades"
            )
        clean, moved = model(images).log_softmax(1), model(adversarial).log_softmax(1)
        label = targets[:, None]
        runner_up = moved.scatter(1, label, -float("inf")).argmax(1, keepdim=True)
        others = moved.scatter(1, runner_up, -float("inf")).logsumexp(1)  # log(1 - p of the runner-up)
        boosted = F.nll_loss(moved, targets) - others.mean()
        doubt = 1 - clean.gather(1, label).squeeze(1).exp()
        return boosted + self.beta * (divergence(clean, moved) * doubt).mean()


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [MART]
