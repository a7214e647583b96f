"""Outcomes: what became of each image of a shard under one trial."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guard.config import GoalSetting
from guard.errors import ContractError, InputError
from guard.evaluation.crafting import craft
from guard.evaluation.plan import Trial
from guard.evaluation.prepare import Network, data_key
from guard.evaluation.store import Arrays
from guard.goal import Goal, correct
from guard.rng import Rng
from guard.source import Data
from guard.threat import ThreatModel
from guard.victim import Victim

PICTURES = 8
"""Adversarial images of the first shard that are kept for the report."""

_ATTACK, _DEFENSE, _SCORING, _TARGETS = range(4)  # streams: none may see another's draws


@dataclass
class Bench:
    """Where trials are computed, and what they share while one shard is worked on."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    num_classes: int
    keep_images: bool
    on_grid: bool
    advance: Callable[[int], None]
    crafted: dict[tuple[str | None, str, int], tuple[Tensor, Tensor, Tensor, float]] = field(default_factory=dict)
    """Images crafted for another victim, by craft key, shard and attack; all victims are scored on the same ones."""

    def images(self, shard: Data) -> Tensor:
        """The shard's images where they are computed on."""
        return shard.floats().to(self.device, self.dtype)

    def clean(self, network: Network, shard: Data, seed: int = 0) -> Tensor:
        """The network's logits of the clean images, float64 on the CPU."""
        images, index = self.images(shard), shard.index.to(self.device)
        return torch.cat([part.double().cpu() for part in self._logits(network, images, index, seed)])

    def outcome(self, trial: Trial, shard: Data, clean: Tensor, who: str) -> Arrays:
        """Attack and score the images of a shard; `clean` are the victim's logits of the clean images.

        Arrays with one row per image: correct (predicted as its label), reached (the goal), distance, correct_8bit
        (rounded to 8 bits), forwards, backwards, target (-1 for none) and prediction.
        """
        started = time.perf_counter()
        images, labels, index = self.images(shard), shard.labels.to(self.device), shard.index.to(self.device)
        targets = targets_for(trial.goal, clean.to(self.device), labels, index, trial.seed, self.num_classes)
        goal = Goal(labels, targets)
        wanted = torch.ones_like(labels, dtype=torch.bool) if targets is None else targets != labels
        if trial.drop:  # a clean error is an error already
            wanted &= correct(clean, shard.labels).to(self.device)
        adversarial, forwards, backwards, reused = self._crafted(trial, shard, images, goal, index, wanted, who)
        logits = torch.cat(self._logits(trial.scored_on, adversarial, index, trial.seed))
        if not logits.isfinite().all():
            raise ContractError(f"the victim of {who} returns NaN or infinity on adversarial images")
        rounded = adversarial
        if self.on_grid:
            rounded = to_8bit(adversarial, images, trial.threat)
        logits_8bit = torch.cat(self._logits(trial.scored_on, rounded, index, trial.seed)) if self.on_grid else logits
        values = {
            "correct": correct(logits, labels),
            "reached": goal.reached(logits) & wanted,
            "distance": trial.threat.distance(adversarial, images),
            "correct_8bit": correct(logits_8bit, labels),
            "forwards": forwards,
            "backwards": backwards,
            "target": torch.full_like(labels, -1) if targets is None else targets,
            "prediction": logits.argmax(1),
        }
        arrays = {name: value.cpu().numpy() for name, value in values.items()}
        kept = len(images) if self.keep_images else PICTURES
        arrays["adversarial"] = adversarial[:kept].float().cpu().numpy()
        arrays["seconds"] = torch.tensor(time.perf_counter() - started + reused).numpy()
        return arrays

    def _crafted(
        self, trial: Trial, shard: Data, images: Tensor, goal: Goal, index: Tensor, wanted: Tensor, who: str
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """Adversarial images, forwards and backwards of each, and the seconds that another trial spent on them."""
        memo = (trial.craft_key, data_key(shard), id(trial.attack))
        victim_decides = isinstance(trial.goal, str) or trial.goal.targets != "least-likely"
        if memo in self.crafted:
            self.advance(len(images))
            return self.crafted[memo]
        started = time.perf_counter()
        result, rows = images.clone(), wanted.nonzero().squeeze(1)
        forwards = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        backwards = torch.zeros_like(forwards)
        self.advance(len(images) - len(rows))
        for part in rows.split(self.batch_size):
            network, shape = trial.crafted_on, tuple(images.shape[1:])
            victim = Victim(
                network.model,
                images[part],
                Rng(trial.seed, index[part], shape, _DEFENSE),
                stages=network.stages,
                access=trial.attack.access,
                drop=trial.drop,
            )
            rng = Rng(trial.seed, index[part], shape, _ATTACK)
            crafted = craft(
                trial.attack, network.model, victim, images[part], goal[part], trial.threat, rng=rng, who=who
            )
            result[part], forwards[part], backwards[part] = crafted.adversarial, crafted.forwards, crafted.backwards
            self.advance(len(part))
        made = (result, forwards, backwards, 0.0)
        if not trial.drop and victim_decides:
            self.crafted[memo] = (result, forwards, backwards, time.perf_counter() - started)
        return made

    def _logits(self, network: Network, images: Tensor, index: Tensor, seed: int) -> list[Tensor]:
        shape = tuple(images.shape[1:])
        rows = torch.arange(len(images), device=self.device).split(self.batch_size)
        return [network.logits(images[part], Rng(seed, index[part], shape, _SCORING)) for part in rows]


def targets_for(
    goal: GoalSetting, clean: Tensor, labels: Tensor, index: Tensor, seed: int, num_classes: int
) -> Tensor | None:
    """The target of each image, int64 (N,), or None for an untargeted goal. Raises InputError."""
    if isinstance(goal, str):
        return None
    if goal.targets == "least-likely":
        return clean.scatter(1, labels[:, None], float("inf")).argmin(1)
    if goal.targets == "next":
        return (labels + 1) % num_classes
    if goal.targets == "random":
        other = Rng(seed, index, (), _TARGETS).integers(num_classes - 1)
        return other + (other >= labels)
    if goal.targets >= num_classes:
        raise InputError(f"goal: target {goal.targets} is no class; the data set has classes 0 to {num_classes - 1}")
    return torch.full_like(labels, goal.targets)


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
