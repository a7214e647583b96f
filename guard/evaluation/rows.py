"""Rows: a computed plan as the cells, worst cases and pictures of a result."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from guard.attack import Attack
from guard.config import EvaluationConfig
from guard.errors import blamed
from guard.evaluation import bitmap
from guard.evaluation.network import Network
from guard.evaluation.outcome import PICTURES
from guard.evaluation.plan import Planned
from guard.evaluation.result import Candidate, Cell, Pictures, Status, WorstCase
from guard.evaluation.store import Arrays, write_arrays
from guard.evaluation.summary import (
    Scored,
    Shares,
    best,
    candidate,
    figures,
    joined,
    minimal,
    parts,
    standing,
    worst_cases,
)
from guard.keys import key
from guard.learned import LearnedAttack
from guard.learned_defense import LearnedDefense
from guard.learner import Learner
from guard.source import Data, DatasetSource
from guard.statistics import interval

L = TypeVar("L", bound=Learner)
_THROUGH = ("gradient", "bpda", "identity", "relax", "smoothed")
_MASKED = 0.05  # of all images
_LOW = 0.05  # labels that are shifted by one leave a network of 1,000 classes about 1 %, some ten times chance


@dataclass
class Ledger:
    """What was computed. Trials and networks are known by identity; they live as long as the plan."""

    failed: dict[int, str] = field(default_factory=dict)
    """Why a trial or a network broke its contract."""
    outcomes: dict[int, list[Arrays]] = field(default_factory=dict)
    """Of each trial, shard by shard."""
    clean: dict[int, list[Arrays]] = field(default_factory=dict)
    """How each network answers the clean images, shard by shard."""
    shards: list[str] = field(default_factory=list)
    """The key of each shard of images."""
    computed: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Table:
    """The rows of a result, and what they were made of."""

    config: EvaluationConfig
    data: Data
    planned: Sequence[Planned]
    scored: Sequence[Scored]

    @classmethod
    def of(cls, config: EvaluationConfig, data: Data, planned: Sequence[Planned], ledger: Ledger) -> "Table":
        """A row for each planned cell."""
        whole, on_grid = key(ledger.shards), data.on_grid
        return cls(config, data, planned, [_scored(item, config, data, whole, on_grid, ledger) for item in planned])

    @property
    def cells(self) -> list[Cell]:
        """In the order of the plan."""
        return [item.cell for item in self.scored]

    @property
    def worst_case(self) -> list[WorstCase]:
        """See `worst_cases`."""
        return worst_cases(self.scored, self.data.labels.numpy(), self.data.on_grid)

    @property
    def standing(self) -> dict[str, Shares]:
        """How far each image stands in each cell that has a valid outcome, by the cell's key."""
        return {
            item.cell.key: standing(item.outcome, item.clean)
            for item in self.scored
            if item.outcome is not None and item.clean is not None
        }

    @property
    def adversarial(self) -> dict[str, NDArray[Any]]:
        """The adversarial images of each cell that has a valid outcome, by the cell's key."""
        return {item.cell.key: item.outcome["adversarial"] for item in self.scored if item.outcome is not None}

    def pictures(self, ledger: Ledger) -> dict[str, Pictures]:
        """A few images of each cell that has a valid outcome."""
        names, first = self.config.dataset.class_names, self.data[:PICTURES].loaded()

        def named(classes: Tensor | NDArray[np.int64]) -> tuple[str, ...]:
            return tuple(names[number] for number in classes[: len(first)].tolist())

        return {
            item.cell.key: Pictures(
                clean=first.floats().numpy(),
                adversarial=item.outcome["adversarial"][: len(first)],
                labels=named(first.labels),
                clean_predictions=named(ledger.clean[id(planned.victim)][0]["logits"].argmax(1)),
                predictions=named(item.outcome["prediction"]),
                learned=_perturbation(planned.trials[0].attack, item.cell.label),
            )
            for planned, item in zip(self.planned, self.scored, strict=True)
            if item.outcome is not None
        }

    def write_attacks(self, folder: Path) -> None:
        """Write what attacks learned, once each; in a folder of its own where a label learned several times.

        A perturbation that was learned for all images is written as LABEL.png too, in 8 bits: level 128 where nothing
        changes, 0 and 255 at minus and plus its largest absolute value.
        """
        for label, home, attack in _saved(self._attacks(), folder):
            perturbation = _perturbation(attack, label)
            if perturbation is not None:
                picture = bitmap.centered(perturbation, bitmap.largest(perturbation))
                (home / f"{label}.png").write_bytes(bitmap.png(picture))

    def write_defenses(self, folder: Path) -> None:
        """Write what defenses learned, as `write_attacks` does, in a stack of several under their names."""
        _saved(self._defenses(), folder)

    def _attacks(self) -> Iterator[tuple[str, str, LearnedAttack]]:
        """Those that learned: label, a name of its own, attack."""
        for planned, item in zip(self.planned, self.scored, strict=True):
            for trial in planned.trials:
                if isinstance(trial.attack, LearnedAttack):
                    own = item.cell.key if trial is planned.trials[0] else f"{item.cell.key}-{trial.name}"
                    yield item.cell.label, own, trial.attack

    def _defenses(self) -> Iterator[tuple[str, str, LearnedDefense]]:
        """Those that learned: label, a name of its own, defense."""
        for planned, item in zip(self.planned, self.scored, strict=True):
            alone = len(planned.cell.defense.members) == 1
            stages = () if planned.victim is None else planned.victim.stages
            for number, stage in enumerate(stage for stage in stages if isinstance(stage, LearnedDefense)):
                own = f"{item.cell.key}-{number + 1}" if number else item.cell.key
                yield item.cell.defense if alone else stage.name, own, stage

    def write_images(self, folder: Path) -> None:
        """Write the adversarial images of each cell, in a folder of its own where another cell has the same label."""
        done = [(item.cell, item.outcome) for item in self.scored if item.outcome is not None]
        labels = [cell.label for cell, _ in done]
        for cell, outcome in done:
            home = folder if labels.count(cell.label) == 1 else folder / cell.key
            home.mkdir(parents=True, exist_ok=True)
            arrays = {"adversarial": outcome["adversarial"], "indices": self.data.index.numpy()}
            write_arrays(home / f"{cell.label}.npz", arrays | {"labels": self.data.labels.numpy()})


def _saved(found: Iterable[tuple[str, str, L]], folder: Path) -> list[tuple[str, Path, L]]:
    """Save what learned, once each: label, where it lies, what learned."""
    labels: dict[str, dict[int, tuple[str, L]]] = {}
    for label, own, learner in found:
        labels.setdefault(label, {}).setdefault(id(learner), (own, learner))
    saved = [
        (label, folder if len(several) == 1 else folder / own, learner)
        for label, several in labels.items()
        for own, learner in several.values()
    ]
    for label, home, learner in saved:
        learner.save(home / f"{label}.safetensors")
    return saved


def _perturbation(attack: Attack, label: str) -> NDArray[np.float32] | None:
    """What an attack learned to add to all images, (C, H, W); None for any other. Raises ContractError."""
    if not isinstance(attack, LearnedAttack):
        return None
    with blamed(f"attack '{label}'"):
        picture = attack.picture(attack.module)
        return None if picture is None else picture.detach().float().cpu().numpy()


def _scored(item: Planned, config: EvaluationConfig, data: Data, whole: str, on_grid: bool, ledger: Ledger) -> Scored:
    """The row of a cell; `whole` is the key of its data."""
    cell = item.cell
    identity = (cell.label, cell.model_label, cell.defense_label, cell.knowledge, str(cell.goal), cell.seed)
    shared: dict[str, Any] = {
        "key": key([way.key for way in item.trials], identity, str(cell.threat), cell.source_label, whole),
        "dataset": config.dataset.name,
        "model": cell.model_label,
        "defense": cell.defense_label,
        "goal": str(cell.goal),
        "norm": cell.threat.norm,
        "epsilon": cell.threat.epsilon,
        "knowledge": cell.knowledge,
        "seed": cell.seed,
        "label": cell.label,
        "attack": cell.attack.name or type(cell.attack).__name__,
        "attack_parameters": cell.attack.model_dump(mode="json", exclude={"name"}),
        "source": cell.source_label,
        "images": len(data),
    }
    if item.refused is not None or item.victim is None:
        status, reason = item.refused or ("INVALID", "")
        return Scored(Cell(**shared, status=status, reason=reason))
    broken = [ledger.failed[at] for at in (id(item.victim), *map(id, item.trials)) if at in ledger.failed]
    if broken:
        return Scored(Cell(**shared, status="INVALID", reason=broken[0]))
    answers = ledger.clean[id(item.victim)]
    logits, clean = (np.concatenate([answer[name] for answer in answers]) for name in ("logits", "correct"))
    outcomes = [joined(ledger.outcomes[id(way)]) for way in item.trials]
    status, reason = suspicion(item.victim, logits, clean, config.dataset)
    ways = tuple(candidate(way.name, o, clean) for way, o in zip(item.trials, outcomes, strict=True))
    if status == "VALID":
        status, reason = masked(ways, item.victim.randomized)
    outcome, labels = best(outcomes), data.labels.numpy()
    epsilons = [threat.epsilon for threat in config.threat if threat.norm == cell.threat.norm]
    undecided = int((outcome["undecided"] & (clean > 0.5)).sum())
    row = Cell(
        **shared | figures(outcome, clean, labels, on_grid) | minimal(outcome, clean, labels, epsilons),
        status=status,
        reason=reason,
        candidates=ways,
        parts=parts(outcomes[0], clean),
        fit=item.fits[0] if item.fits else None,
        fit_forwards=sum(fit.forwards for fit in item.fits),
        fit_backwards=sum(fit.backwards for fit in item.fits),
        undecided=undecided if cell.attack.estimate or undecided else None,
        eot=max(trial.eot for trial in item.trials),
        scoring_draws=max(trial.scoring_draws for trial in item.trials),
    )
    return Scored(row, outcome, clean)


def masked(candidates: Sequence[Candidate], randomized: bool) -> tuple[Status, str]:
    """SUSPECT where whoever ignores a defense breaks clearly more images than all gradients through it, or VALID."""
    through = [way.robust_accuracy for way in candidates if way.name in _THROUGH]
    around = [way.robust_accuracy for way in candidates if way.name == "oblivious"]
    if not through or not around or min(through) - around[0] < _MASKED:
        return "VALID", ""
    better = "are of too few draws, or masked. Raise eot, or write" if randomized else "are masked. Write"
    return "SUSPECT", (
        f"gradients through the defense leave {min(through):.1%}, an attacker who ignores it {around[0]:.1%}: they "
        f"{better} differentiable = False where they are not true, and a surrogate"
    )


def suspicion(
    network: Network, logits: NDArray[np.float64], clean: Shares, dataset: DatasetSource
) -> tuple[Status, str]:
    """SUSPECT with the first reason that holds, or VALID."""
    sums = logits.sum(1)
    if network.access != "labels" and logits.min() >= 0 and logits.max() <= 1 and abs(sums - 1).max() < 1e-4:
        return "SUSPECT", 'the model\'s outputs look like probabilities. Give outputs="probabilities"'
    chance = 1 / dataset.num_classes
    at_chance = interval(clean)[0] <= chance
    if at_chance or clean.mean() < _LOW:
        above = f"not clearly above chance ({chance:.1%})" if at_chance else f"below {_LOW:.0%}"
        text = f"clean accuracy {clean.mean():.1%} on {len(clean)} images is {above}"
        return "SUSPECT", f"{text}. Check {dataset.label_hint} and the normalisation"
    return "VALID", ""
