"""APGD-L1: steps along the largest entries of the gradient, of which each image sets the number for itself.

Croce, Hein: Mind the box: l1-APGD for sparse adversarial attacks on image classifiers, ICML 2021.
"""

import torch
from torch import Tensor

from guard import Memory, Now, ThreatModel


def first_sparse(images: Tensor, threat: ThreatModel) -> Memory:
    """What l1 carries along besides the best point, one value per image: the length of a step, how many entries it
    moves (a fifth at first), and how many the best point had moved when last judged (at first taken for all)."""
    size = images.new_full((len(images),), threat.epsilon)
    total = images.shape[1:].numel()
    chosen = torch.full_like(size, max(total // 5, 1), dtype=torch.int64)
    return {"size": size, "chosen": chosen, "moved": torch.full_like(chosen, total)}


def judge_sparsity(now: Now, memory: Memory, steps: int) -> Tensor | None:
    """Before every 25th part of all steps, judge which images' best points have grown sparser by 5 %, and say which.

    Those go on from it with the full step again; the others shorten theirs by a third, to a tenth of epsilon at least.
    From then on a step moves two entries for every three that the best point moved, rounded down (the paper leaves it
    open; the authors' code rounds up, and so never comes down to one).
    """
    if not now.step or now.step % max(int(0.04 * steps), 1):
        return None
    epsilon, moved = now.threat.epsilon, (memory["best"] != now.images).flatten(1).sum(1)
    sparser = moved < 0.95 * memory["moved"]
    memory["size"] = torch.where(sparser, epsilon, memory["size"] / 1.5).clamp(epsilon / 10, epsilon)
    memory["chosen"], memory["moved"] = (moved * 2 // 3).clamp(min=1), moved
    return sparser


def sparse_step(gradient: Tensor, memory: Memory) -> Tensor:
    """Equal changes of the entries with the largest gradient, `size` together."""
    flat = gradient.flatten(1)
    sizes = flat.abs()
    least = sizes.sort(dim=1, descending=True).values.gather(1, memory["chosen"][:, None] - 1)
    signs = flat.sign().masked_fill_(sizes < least, 0)
    length = memory["size"] / signs.count_nonzero(1).clamp(min=1)
    return signs.mul_(length[:, None]).view_as(gradient)
