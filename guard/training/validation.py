"""Validation: how robust a network is while it learns, seen on training images that are held out."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from guard.goal import Goal, correct
from guard.layers import held
from guard.rng import Rng
from guard.source import Data
from guard.threat import ThreatModel
from guard.training.record import Epoch
from guard.victim import Victim

_MOST = 1000  # images that are held out
_BATCH = 250
_STEPS = 10
_REACH = 2.5  # what all steps are long together, in units of epsilon
# overfitting is catastrophic where one step breaks few of the images that several steps break nearly all of: at least
# the first share of clean accuracy is left by one step, and at most the second share of that by several
_APART = ((0.75, 1 / 8), (0.9, 1 / 3))
_GAP = 0.2  # and at least so far apart
# or where robustness to several steps fell so far below its best, and that to one step by less than half of it
_FALL = 0.2
_SHARE = 0.5


class Accuracies(NamedTuple):
    """Shares of the held-out images that are classified correctly, clean and under attack."""

    clean: float
    fgsm: float | None
    pgd: float | None


Seen = Accuracies | dict[str, float]
"""What an epoch was seen to do on held-out images; of figures by name, the first one tells which epoch is best."""


def hold_out(data: Data, share: float, seed: int) -> tuple[Data, Data]:
    """The images to learn on, and `share` of them, at most 1,000, drawn by the seed, that are held out.

    At least one is learned on.
    """
    count = min(round(share * len(data)), _MOST, len(data) - 1)
    if count < 1:
        return data, data[:0]
    order = torch.randperm(len(data), generator=Generator().manual_seed(seed))
    return data[order[count:].sort().values], data[order[:count].sort().values]


def validate(model: nn.Module, data: Data, threat: ThreatModel, seed: int, device: torch.device) -> Accuracies:
    """On the held-out images: clean, after one full step, and after that and PGD with 10 steps.

    Each figure counts the images that have been classified correctly so far. Without a bound the first one is all.
    """
    bounded = math.isfinite(threat.epsilon)
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    for part in data.batches(_BATCH):
        images, labels = part.floats().to(device), part.labels.to(device)
        rng = Rng(seed, part.index.to(device), tuple(images.shape[1:]))
        with held(model):
            victim, goal = Victim(model, images, rng, drop=False), Goal(labels)
            good = [correct(victim.logits(images), labels)]
            if bounded:
                good.append(good[0] & _stands(victim, _fgsm(victim, images, goal, threat), labels))
                good.append(good[1] & _stands(victim, _pgd(victim, images, goal, threat, rng), labels))
        counts[: len(good)] += torch.stack([flags.sum() for flags in good])
    clean, fgsm, pgd = (int(count) / len(data) for count in counts.tolist())
    return Accuracies(clean, fgsm, pgd) if bounded else Accuracies(clean, None, None)


def collapsed(epochs: Sequence[Epoch], now: Accuracies) -> str | None:
    """Why the last epoch overfitted catastrophically, or None: robust to the one step it may have trained on, and not
    to several (Wong, Rice, Kolter 2020)."""
    if now.fgsm is None or now.pgd is None:
        return None
    far = any(now.fgsm > kept * now.clean and now.pgd < left * now.fgsm for kept, left in _APART)
    apart = far and now.fgsm - now.pgd > _GAP
    best = max(epochs, key=lambda epoch: epoch.pgd or 0, default=None)
    lost = 0.0 if best is None else (best.pgd or 0) - now.pgd
    fell = best is not None and lost > _FALL and (best.fgsm or 0) - now.fgsm < _SHARE * lost
    if not (apart or fell):
        return None
    before = f" (PGD was {100 * best.pgd:.1f})" if best is not None and best.pgd is not None else ""
    return f"catastrophic overfitting: FGSM {100 * now.fgsm:.1f}, PGD {100 * now.pgd:.1f}{before}"


def _stands(victim: Victim, points: Tensor, labels: Tensor) -> Tensor:
    return correct(victim.logits(points), labels)


def _fgsm(victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel) -> Tensor:
    gradient, _, _ = victim.gradient(images, goal)
    return threat.project(images + threat.steepest_ascent(gradient, threat.epsilon, images), images)


def _pgd(victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
    """The last point of ten steps from a random start."""
    point, size = threat.random_start(images, rng), _REACH * threat.epsilon / _STEPS
    for _ in range(_STEPS):
        gradient, _, _ = victim.gradient(point, goal)
        point = threat.project(point + threat.steepest_ascent(gradient, size, point), images)
    return point
