"""Outcomes: what became of each image of a shard under one trial."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.attack import MinimalAttack, within
from guard.config import GoalSetting, Targets
from guard.errors import ContractError, InputError
from guard.evaluation.crafting import craft
from guard.evaluation.nearest import Nearest
from guard.evaluation.network import SCORING, TARGETS, Network
from guard.evaluation.plan import Trial
from guard.evaluation.store import Arrays, Store
from guard.goal import Goal, correct
from guard.keys import data_key
from guard.rng import Rng
from guard.source import Data
from guard.spectrum import low_frequency_energy
from guard.threat import ThreatModel

PICTURES = 8
"""Adversarial images of a shard that are kept for the report."""


PART = "part of the attack: "
"""Begins the name of the array int64 (N, 4) of a part: forwards, backwards, whether it broke the image, was tried."""
WIDTH = 4
"""Of such an array."""

_EITHER = ("correct", "reached", "distance", "low_frequency_energy", "correct_8bit", "target", "prediction")


@dataclass(frozen=True)
class Made:
    """What an attack made of a shard, checked: a point and its cost for each image, and the seconds it took."""

    points: Tensor
    forwards: Tensor
    backwards: Tensor
    undecided: Tensor
    parts: dict[str, Tensor]
    """By `PART` and the part's name."""
    seconds: float

    def arrays(self) -> Arrays:
        """As the store keeps it."""
        values = {name: getattr(self, name) for name in _MADE} | self.parts
        return {name: value.cpu().numpy() for name, value in values.items()} | {"seconds": np.array(self.seconds)}

    @classmethod
    def of(cls, arrays: Arrays, device: torch.device) -> "Made":
        """From what the store kept."""
        values = {name: torch.from_numpy(array).to(device) for name, array in arrays.items() if name != "seconds"}
        points, forwards, backwards, undecided = (values.pop(name) for name in _MADE)
        return cls(points, forwards, backwards, undecided, values, float(arrays["seconds"]))


_MADE = ("points", "forwards", "backwards", "undecided")


@dataclass
class Bench:
    """Where trials are computed, and what they share while one shard is worked on."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int | None
    """Images at a time; chosen by each network where left out."""
    num_classes: int
    keep_images: bool
    store: Store
    """Where the nearest points of minimum-distance attacks are kept, for other epsilons."""
    bf16: bool = False
    """Whether attacks that allow it search in bfloat16."""
    max_queries: int | None = None
    """How often an attack may ask about one image."""
    crafted: dict[tuple[object, ...], Made] = field(default_factory=dict)
    """What several trials can share, by `Trial.crafting`: points crafted for another victim than the one they are
    scored on, and nearest points, which answer every epsilon. To be cleared before the next shard."""

    def clean(self, network: Network, shard: Data, seed: int = 0) -> Tensor:
        """The network's logits of the clean images, float64 on the CPU. Raises ContractError."""
        images, _, index = self._placed(shard)
        return self._logits(network, images, index, seed).double().cpu()

    def outcome(
        self,
        trial: Trial,
        shard: Data,
        clean: Tensor,
        who: str,
        advance: Callable[[int], None],
        before: tuple[str, Arrays] | None = None,
    ) -> Arrays:
        """Attack and score the images of a shard; `clean` are the victim's logits of the clean images.

        Arrays with one row per image: correct (predicted as its label), reached (the goal), distance,
        low_frequency_energy (NaN where the image was not moved), correct_8bit (rounded to 8 bits where the shard is on
        that grid), forwards, backwards, target (-1 for none), prediction, undecided (the attack stopped although the
        image might still fall), one for each part of a cascade (see `PART`), and, of a minimum-distance attack,
        nearest: the distance of the nearest point that reached the goal, in whichever ball, inf where none did. And
        `adversarial`, of all images or of a few, and `seconds`. Costs and seconds are those of the whole answer, also
        where another trial paid for it. `advance` is told of images that were attacked. `before` names an attack that
        went first, with its outcome: only what it left is attacked, and the rest stays as it is there. Raises
        ContractError.
        """
        started = time.perf_counter()
        images, labels, index = self._placed(shard)
        targets = targets_for(trial.goal, clean.to(self.device), labels, index, trial.seed, self.num_classes)
        goal = Goal(labels, targets)
        wanted = torch.ones_like(labels, dtype=torch.bool) if targets is None else targets != labels
        if trial.drop:  # a clean error is an error already
            wanted &= correct(clean, shard.labels).to(self.device)
        if before is not None:
            wanted &= ~torch.from_numpy(before[1]["reached"]).to(self.device)
        made, earlier = self._made(trial, shard, goal, wanted, who, advance)
        adversarial, values = made.points, dict(made.parts)
        if isinstance(trial.attack, MinimalAttack):
            reached = goal.reached(self._scored(trial, adversarial, index, who))
            values["nearest"] = trial.threat.distance(adversarial, images).masked_fill(~reached, float("inf"))
            adversarial = within(trial.threat, adversarial, images)
        logits = self._scored(trial, adversarial, index, who)
        logits_8bit = logits
        if shard.on_grid:
            logits_8bit = self._scored(trial, to_8bit(adversarial, images, trial.threat), index, who)
        values |= {
            "correct": correct(logits, labels),
            "reached": goal.reached(logits),
            "distance": trial.threat.distance(adversarial, images),
            "low_frequency_energy": low_frequency_energy(adversarial.double() - images),
            "correct_8bit": correct(logits_8bit, labels),
            "forwards": made.forwards,
            "backwards": made.backwards,
            "undecided": made.undecided & correct(logits, labels),
            "target": torch.full_like(labels, -1) if targets is None else targets,
            "prediction": logits.argmax(1),
            "adversarial": adversarial.float() if self.keep_images else adversarial[:PICTURES].float().clone(),
            "seconds": torch.tensor(time.perf_counter() - started + earlier),
        }
        arrays = {name: value.cpu().numpy() for name, value in values.items()}
        return arrays if before is None else _taken_over(*before, arrays, shard.labels.numpy())

    def _made(
        self, trial: Trial, shard: Data, goal: Goal, wanted: Tensor, who: str, advance: Callable[[int], None]
    ) -> tuple[Made, float]:
        """What the attack makes of the wanted images, and the seconds that were spent on it before this trial."""
        if trial.crafting in self.crafted:
            made = self.crafted[trial.crafting]
            return made, made.seconds
        where, name = trial.nearest_key, data_key(shard) if trial.nearest_key else ""
        kept = self.store.read(where, name) if where else None
        made = Made.of(kept, self.device) if kept else self._crafted(trial, shard, goal, wanted, who, advance)
        if where and not kept:
            self.store.write(where, name, made.arrays())
        if trial.crafting:
            self.crafted[trial.crafting] = made
        return made, made.seconds if kept else 0.0

    def _crafted(
        self, trial: Trial, shard: Data, goal: Goal, wanted: Tensor, who: str, advance: Callable[[int], None]
    ) -> Made:
        started = time.perf_counter()
        images, labels, index = self._placed(shard)
        points, rows, parts = images.clone(), wanted.nonzero().squeeze(1), dict[str, Tensor]()
        forwards, backwards = torch.zeros_like(labels), torch.zeros_like(labels)
        undecided = torch.zeros_like(wanted)
        attack = Nearest(attack=trial.attack) if isinstance(trial.attack, MinimalAttack) else trial.attack
        for some in self._batches(trial.crafted_on, rows, images):
            batch = craft(
                attack,
                trial.crafted_on,
                images[some],
                goal[some],
                trial.ball,
                index=index[some],
                seed=trial.seed,
                drop=trial.drop,
                who=who,
                bf16=self.bf16,
                max_queries=self.max_queries,
            )
            points[some], forwards[some], backwards[some] = batch.adversarial, batch.forwards, batch.backwards
            undecided[some] = batch.undecided
            for part in batch.parts:
                did = torch.stack([part.forwards, part.backwards, part.broke.long(), part.tried.long()], 1)
                parts.setdefault(PART + part.name, labels.new_zeros(len(labels), WIDTH))[some] = did
            advance(len(some))
        return Made(points, forwards, backwards, undecided, parts, time.perf_counter() - started)

    def _scored(self, trial: Trial, images: Tensor, index: Tensor, who: str) -> Tensor:
        logits = self._logits(trial.scored_on, images, index, trial.seed)
        if not logits.isfinite().all():
            raise ContractError(f"the victim of {who} returns NaN or infinity on adversarial images")
        return logits

    def _logits(self, network: Network, images: Tensor, index: Tensor, seed: int) -> Tensor:
        shape = tuple(images.shape[1:])
        rows = self._batches(network, torch.arange(len(images), device=self.device), images)
        return torch.cat([network.logits(images[part], Rng(seed, index[part], shape, SCORING)) for part in rows])

    def _batches(self, network: Network, rows: Tensor, images: Tensor) -> Sequence[Tensor]:
        """The rows, as many at a time as the network gets; none of no rows."""
        return rows.split(self.batch_size or network.batch_size(images)) if len(rows) else ()

    def _placed(self, shard: Data) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and index where they are computed on."""
        images = shard.floats().to(self.device, self.dtype)
        return images, shard.labels.to(self.device), shard.index.to(self.device)


def _taken_over(name: str, before: Arrays, after: Arrays, labels: NDArray[np.int64]) -> Arrays:
    """The outcome of two attacks in a row, of which the second got the images that the first left."""
    tried = before["target"] != labels
    done, size = before["reached"], len(after["adversarial"])
    arrays = {name: np.where(done, before[name], after[name]) for name in _EITHER}
    arrays["adversarial"] = np.where(done[:size, None, None, None], before["adversarial"][:size], after["adversarial"])
    arrays |= {name: before[name] + after[name] for name in ("forwards", "backwards", "seconds")}
    arrays["undecided"] = after["undecided"]
    first = np.stack([before["forwards"], before["backwards"], done & tried, tried], 1).astype(np.int64)
    return arrays | {PART + name: first} | {name: array for name, array in after.items() if name.startswith(PART)}


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
