"""Outcomes: what became of each image of a shard under one trial."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guard.config import GoalSetting, Targets
from guard.errors import ContractError, InputError
from guard.evaluation.crafting import Crafted, craft
from guard.evaluation.network import SCORING, TARGETS, Network
from guard.evaluation.plan import Trial
from guard.evaluation.store import Arrays
from guard.goal import Goal, correct
from guard.rng import Rng
from guard.source import Data
from guard.threat import ThreatModel

PICTURES = 8
"""Adversarial images of a shard that are kept for the report."""


@dataclass
class Bench:
    """Where trials are computed, and what they share while one shard is worked on."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    num_classes: int
    keep_images: bool
    crafted: dict[tuple[object, ...], tuple[Crafted, float]] = field(default_factory=dict)
    """What was crafted for another victim than the one it is scored on, and the seconds it took, by `Trial.crafting`;
    all victims are scored on the same images. To be cleared before the next shard."""

    def clean(self, network: Network, shard: Data, seed: int = 0) -> Tensor:
        """The network's logits of the clean images, float64 on the CPU. Raises ContractError."""
        images, _, index = self._placed(shard)
        return self._logits(network, images, index, seed).double().cpu()

    def outcome(self, trial: Trial, shard: Data, clean: Tensor, who: str, advance: Callable[[int], None]) -> Arrays:
        """Attack and score the images of a shard; `clean` are the victim's logits of the clean images.

        Arrays with one row per image: correct (predicted as its label), reached (the goal), distance, correct_8bit
        (rounded to 8 bits where the shard is on that grid), forwards, backwards, target (-1 for none) and prediction;
        and `adversarial`, of all images or of a few, and `seconds`. `advance` is told of images that were attacked.
        Raises ContractError.
        """
        started = time.perf_counter()
        images, labels, index = self._placed(shard)
        targets = targets_for(trial.goal, clean.to(self.device), labels, index, trial.seed, self.num_classes)
        goal = Goal(labels, targets)
        wanted = torch.ones_like(labels, dtype=torch.bool) if targets is None else targets != labels
        if trial.drop:  # a clean error is an error already
            wanted &= correct(clean, shard.labels).to(self.device)
        crafted, before = self._crafted(trial, images, goal, index, wanted, who, advance)
        adversarial = crafted.adversarial
        logits = self._scored(trial, adversarial, index, who)
        logits_8bit = logits
        if shard.on_grid:
            logits_8bit = self._scored(trial, to_8bit(adversarial, images, trial.threat), index, who)
        values = {
            "correct": correct(logits, labels),
            "reached": goal.reached(logits),
            "distance": trial.threat.distance(adversarial, images),
            "correct_8bit": correct(logits_8bit, labels),
            "forwards": crafted.forwards,
            "backwards": crafted.backwards,
            "target": torch.full_like(labels, -1) if targets is None else targets,
            "prediction": logits.argmax(1),
            "adversarial": adversarial[: len(images) if self.keep_images else PICTURES].float(),
            "seconds": torch.tensor(time.perf_counter() - started + before),
        }
        return {name: value.cpu().numpy() for name, value in values.items()}

    def _crafted(
        self,
        trial: Trial,
        images: Tensor,
        goal: Goal,
        index: Tensor,
        wanted: Tensor,
        who: str,
        advance: Callable[[int], None],
    ) -> tuple[Crafted, float]:
        """What the attack makes of the wanted images, and the seconds that an earlier trial spent on it."""
        if trial.crafting in self.crafted:
            return self.crafted[trial.crafting]
        started = time.perf_counter()
        result, rows = images.clone(), wanted.nonzero().squeeze(1)
        forwards = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        backwards = torch.zeros_like(forwards)
        for part in rows.split(self.batch_size) if len(rows) else ():
            batch = craft(
                trial.attack,
                trial.crafted_on,
                images[part],
                goal[part],
                trial.threat,
                index=index[part],
                seed=trial.seed,
                drop=trial.drop,
                who=who,
            )
            result[part], forwards[part], backwards[part] = batch.adversarial, batch.forwards, batch.backwards
            advance(len(part))
        crafted = Crafted(result, forwards, backwards)
        if trial.crafting:
            self.crafted[trial.crafting] = crafted, time.perf_counter() - started
        return crafted, 0.0

    def _scored(self, trial: Trial, images: Tensor, index: Tensor, who: str) -> Tensor:
        logits = self._logits(trial.scored_on, images, index, trial.seed)
        if not logits.isfinite().all():
            raise ContractError(f"the victim of {who} returns NaN or infinity on adversarial images")
        return logits

    def _logits(self, network: Network, images: Tensor, index: Tensor, seed: int) -> Tensor:
        shape = tuple(images.shape[1:])
        rows = torch.arange(len(images), device=self.device).split(self.batch_size)
        return torch.cat([network.logits(images[part], Rng(seed, index[part], shape, SCORING)) for part in rows])

    def _placed(self, shard: Data) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and index where they are computed on."""
        images = shard.floats().to(self.device, self.dtype)
        return images, shard.labels.to(self.device), shard.index.to(self.device)


def targets_for(
    goal: GoalSetting, clean: Tensor, labels: Tensor, index: Tensor, seed: int, num_classes: int
) -> Tensor | None:
    """The target of each image, int64 (N,), or None for an untargeted goal."""
    if isinstance(goal, str):
        return None
    if goal.targets == "least-likely":
        return clean.scatter(1, labels[:, None], float("inf")).argmin(1)
    if goal.targets == "next":
        return (labels + 1) % num_classes
    if goal.targets == "random":
        other = Rng(seed, index, (), TARGETS).integers(num_classes - 1)
        return other + (other >= labels)
    return torch.full_like(labels, goal.targets)


def check_target(goal: GoalSetting, num_classes: int) -> None:
    """Raise InputError where a goal names a class that there is not."""
    if isinstance(goal, Targets) and isinstance(goal.targets, int) and goal.targets >= num_classes:
        raise InputError(f"goal: target {goal.targets} is no class; the data set has classes 0 to {num_classes - 1}")


def to_8bit(adversarial: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """Each value rounded to the nearest multiple of 1/255 inside the ball and the range.

    For linf that is exact. For l2 and l1 an image whose rounding leaves the ball is rounded towards the clean image,
    which lies on the grid, so that it cannot leave.
    """
    grid = (adversarial.double() * 255).round()
    if threat.norm == "linf":
        clean, reach = images.double() * 255, threat.epsilon * 255
        grid = grid.maximum((clean - reach - 1e-4).ceil()).minimum((clean + reach + 1e-4).floor())
        return (grid.clamp(0, 255) / 255).to(images.dtype)
    rounded = (grid / 255).to(images.dtype)
    inwards = torch.where(adversarial > images, (adversarial * 255).floor(), (adversarial * 255).ceil()) / 255
    inwards = torch.where(adversarial > images, inwards.maximum(images), inwards.minimum(images)).to(images.dtype)
    inside = threat.contains(rounded, images).view(-1, 1, 1, 1)
    return torch.where(inside, rounded, inwards)
