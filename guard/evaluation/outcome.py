"""Outcomes: what became of each image of a shard under one trial."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.attack import MinimalAttack, within
from guard.config import GoalSetting, Targets
from guard.errors import ContractError, InputError
from guard.evaluation.answer import SELECTION, Answer, shares
from guard.evaluation.crafting import craft
from guard.evaluation.grid import to_8bit
from guard.evaluation.nearest import Nearest
from guard.evaluation.network import CHOOSING, SCORING, TARGETS, Network
from guard.evaluation.plan import Trial
from guard.evaluation.store import Arrays, Store
from guard.goal import Goal, correct
from guard.keys import data_key
from guard.rng import Rng
from guard.source import Data
from guard.spectrum import low_frequency_energy

PICTURES = 8
"""Adversarial images of a shard that are kept for the report."""


PART = "part of the attack: "
"""Begins the name of the array int64 (N, 4) of a part: forwards, backwards, whether it broke the image, was tried."""
WIDTH = 4
"""Of such an array."""

_SELECTING = 5
"""Of so many scoring draws there is one more by which the attacker chooses among candidates."""

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

    def clean(self, network: Network, shard: Data, draws: int) -> Arrays:
        """How the network answers the clean images: its logits, float64 (of its first draw), and `correct`: where it
        draws, the share of the draws, and that on selection draws. Raises ContractError."""
        images, labels, index = self._placed(shard)
        logits = self._logits(network, images, index, 0)
        arrays = {"logits": logits.double().cpu().numpy(), "correct": correct(logits, labels).cpu().numpy()}
        if draws > 1 and logits.isfinite().all():
            scored, chosen = self._answers(network, images, Goal(labels), index, 0, draws, "the clean images")
            arrays |= {"correct": scored.correct.cpu().numpy(), "correct" + SELECTION: chosen.correct.cpu().numpy()}
        return arrays

    def outcome(
        self,
        trial: Trial,
        shard: Data,
        clean: Arrays,
        who: str,
        advance: Callable[[int], None],
        before: tuple[str, Arrays] | None = None,
    ) -> Arrays:
        """Attack and score the images of a shard; `clean` is how the victim answers the clean ones.

        Arrays with one row per image: correct (predicted as its label), reached (the goal), distance,
        low_frequency_energy (NaN where the image was not moved), correct_8bit (rounded to 8 bits where the shard is on
        that grid), forwards, backwards, target (-1 for none), prediction, undecided (the attack stopped although the
        image might still fall), one for each part of a cascade (see `PART`), and, of a minimum-distance attack,
        nearest: the distance of the nearest point that reached the goal, in whichever ball, inf where none did. Of a
        victim that draws, correct and reached are shares of fresh draws, and stand beside those on the selection draws
        by which the attacker chose; the clean image counts where it does the victim more harm. And
        `adversarial`, of all images or of a few, and `seconds`. Costs and seconds are those of the whole answer, also
        where another trial paid for it. `advance` is told of images that were attacked. `before` names an attack that
        went first, with its outcome: only what it left is attacked, and the rest stays as it is there. Raises
        ContractError.
        """
        started = time.perf_counter()
        images, labels, index = self._placed(shard)
        logits = torch.from_numpy(clean["logits"]).to(self.device)
        targets = targets_for(trial.goal, logits, labels, index, trial.seed, self.num_classes)
        goal = Goal(labels, targets)
        wanted = torch.ones_like(labels, dtype=torch.bool) if targets is None else targets != labels
        if trial.drop:  # a clean error is an error already
            wanted &= correct(logits, labels)
        if before is not None:
            wanted &= ~torch.from_numpy(before[1]["reached"]).to(self.device)
        made, earlier = self._made(trial, shard, goal, wanted, who, advance)
        adversarial, values = made.points, dict(made.parts)
        if isinstance(trial.attack, MinimalAttack):
            _, chosen = self._scored(trial, adversarial, goal, index, who)
            missed = chosen.reached <= 0.5
            values["nearest"] = trial.threat.distance(adversarial, images).masked_fill(missed, float("inf"))
            adversarial = within(trial.threat, adversarial, images)
        scored, chosen = self._scored(trial, adversarial, goal, index, who)
        rounded, rounded_chosen = scored, chosen
        if shard.on_grid:
            grid = to_8bit(adversarial, images, trial.threat)
            rounded, rounded_chosen = self._scored(trial, grid, goal, index, who)
        values |= shares(trial.scoring_draws, "correct", scored.correct, chosen.correct, clean)
        values |= shares(trial.scoring_draws, "correct_8bit", rounded.correct, rounded_chosen.correct, clean)
        values |= shares(trial.scoring_draws, "reached", scored.reached, chosen.reached)
        values |= {
            "distance": trial.threat.distance(adversarial, images),
            "low_frequency_energy": low_frequency_energy(adversarial.double() - images),
            "forwards": made.forwards,
            "backwards": made.backwards,
            "undecided": made.undecided & (scored.correct > 0.5),
            "target": torch.full_like(labels, -1) if targets is None else targets,
            "prediction": scored.prediction,
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
                eot=trial.eot,
            )
            points[some], forwards[some], backwards[some] = batch.adversarial, batch.forwards, batch.backwards
            undecided[some] = batch.undecided
            for part in batch.parts:
                did = torch.stack([part.forwards, part.backwards, part.broke.long(), part.tried.long()], 1)
                parts.setdefault(PART + part.name, labels.new_zeros(len(labels), WIDTH))[some] = did
            advance(len(some))
        return Made(points, forwards, backwards, undecided, parts, time.perf_counter() - started)

    def _scored(self, trial: Trial, images: Tensor, goal: Goal, index: Tensor, who: str) -> tuple[Answer, Answer]:
        what = f"the adversarial images of {who}"
        return self._answers(trial.scored_on, images, goal, index, trial.seed, trial.scoring_draws, what)

    def _answers(
        self, network: Network, images: Tensor, goal: Goal, index: Tensor, seed: int, draws: int, what: str
    ) -> tuple[Answer, Answer]:
        """On scoring draws, and on selection draws; the same where there is but one."""

        def drawn(count: int, seed: int, stream: int) -> Iterator[Tensor]:
            for draw in range(count):
                logits = self._logits(network, images, index, seed, stream, draw if draws > 1 else None)
                if not logits.isfinite().all():
                    raise ContractError(f"the victim returns NaN or infinity on {what}")
                yield logits

        scored = Answer.of(drawn(draws, seed, SCORING), goal)
        if draws == 1:
            return scored, scored
        # whatever the seed, the same draws for all candidates: of unlike ones chance would choose, to the victim's good
        return scored, Answer.of(drawn(max(draws // _SELECTING, 1), 0, CHOOSING), goal)

    def _logits(
        self, network: Network, images: Tensor, index: Tensor, seed: int, stream: int = SCORING, draw: int | None = None
    ) -> Tensor:
        shape, answers = tuple(images.shape[1:]), []
        for part in self._batches(network, torch.arange(len(images), device=self.device), images):
            rng = Rng(seed, index[part], shape, stream)
            answers.append(network.logits(images[part], rng if draw is None else rng.fold(draw)))
        return torch.cat(answers)

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
