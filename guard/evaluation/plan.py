"""The plan: which cells an evaluation has, and the ways in which the attacker tries inside each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import NamedTuple

from guard.attack import Attack, MinimalAttack
from guard.building import label_of
from guard.cascade import Cascade
from guard.config import EvaluationConfig, GoalSetting, Targets, Transfer
from guard.defense import Stack
from guard.errors import NotApplicable
from guard.evaluation.bridges import SMOOTHED
from guard.evaluation.crafting import applicable
from guard.evaluation.nearest import unbounded
from guard.evaluation.network import Network
from guard.evaluation.prepare import Defended
from guard.evaluation.result import Fit, Status
from guard.keys import UnkeyableError, component_key, key
from guard.learned import LearnedAttack
from guard.source import ModelSource
from guard.threat import ThreatModel


@dataclass(frozen=True)
class PlannedCell:
    """One cell, before anything is computed."""

    model: ModelSource
    model_label: str
    defense: Stack
    defense_label: str
    attack: Attack
    label: str
    goal: GoalSetting
    threat: ThreatModel
    knowledge: str
    source: ModelSource | None
    source_label: str | None
    seed: int


@dataclass(frozen=True)
class Trial:
    """One way to attack: an attack crafted on a network and scored on another, or on the same."""

    name: str
    attack: Attack
    crafted_on: Network
    scored_on: Network
    goal: GoalSetting
    threat: ThreatModel
    seed: int
    drop: bool
    """Whether the attack may stop at an image that reached its goal."""
    environment: str
    max_queries: int | None = None
    eot: int = 1
    """Draws that the attack's gradients are averaged over."""
    scoring_draws: int = 1
    """Draws that each image is scored on."""

    @cached_property
    def after(self) -> "Trial | None":
        """The same trial of the attack whose survivors this one takes over."""
        shared = isinstance(self.attack, Cascade) and self.drop and self.max_queries is None  # a budget is for both
        first = self.attack.after if isinstance(self.attack, Cascade) and shared else None
        return None if first is None else replace(self, attack=first)

    @cached_property
    def alone(self) -> "Trial":
        """The trial without the attack that goes first."""
        if self.after is None:
            return self
        return replace(self, attack=self.attack.model_copy(update={"after": None}))

    @property
    def ball(self) -> ThreatModel:
        """What the attack may do while it crafts: all, where it looks for the nearest points."""
        return unbounded(self.threat.norm) if isinstance(self.attack, MinimalAttack) else self.threat

    @property
    def crafting(self) -> tuple[object, ...]:
        """What decides the points that are crafted for a shard within a run; empty where no other trial can share them.

        By identity, for not everything can be hashed: whatever is named here lives as long as the run.
        """
        networks = [self.crafted_on]
        if self.drop or (isinstance(self.goal, Targets) and self.goal.targets == "least-likely"):
            if not isinstance(self.attack, MinimalAttack):
                return ()
            networks.append(self.scored_on)  # it has a say in what is crafted
        on = [id(part) for network in networks for part in (network.model, *network.stages)]
        return id(self.attack), *on, self.goal, self.ball, self.seed, self.drop

    @cached_property
    def key(self) -> str | None:
        """Of all that decides the outcome, but for the images; None where something in it cannot be hashed."""
        return self._key(self.threat)

    @cached_property
    def nearest_key(self) -> str | None:
        """Of the nearest points, which no epsilon decides; None for other attacks, and where it cannot be hashed."""
        return self._key(self.ball, "nearest") if isinstance(self.attack, MinimalAttack) else None

    def _key(self, threat: ThreatModel, *what: str) -> str | None:
        if self.crafted_on.key is None or self.scored_on.key is None:
            return None
        goal = self.goal if isinstance(self.goal, str) else self.goal.model_dump_json()
        ball, networks = threat.model_dump_json(), (self.crafted_on.key, self.scored_on.key)
        try:
            return key(
                component_key(self.attack),
                *networks,
                goal,
                ball,
                self.seed,
                self.drop,
                self.environment,
                self.eot,
                self.scoring_draws,
                *what,
            )
        except UnkeyableError:
            return None


@dataclass(frozen=True)
class Planned:
    """A cell, and how its attacker tries; or why it does not."""

    cell: PlannedCell
    victim: Network | None = None
    trials: tuple[Trial, ...] = ()
    fits: tuple[Fit, ...] = ()
    """What the attack learned before, for each trial; nothing where it does not learn."""
    refused: tuple[Status, str] | None = None


class Way(NamedTuple):
    """A way in which the attacker of a cell tries."""

    name: str
    network: Network
    """That the attack is crafted on, or learns on."""
    on: str
    """What a report calls that network."""


_DROPPING = (
    "gradient",
    "bpda",
    "queries",
    "relax",
    "identity",
)  # where an attack may stop at an image that reached its goal


def name_of(cell: PlannedCell) -> str:
    """What a report calls the victim of a cell."""
    return cell.model_label if cell.defense_label == "none" else f"{cell.model_label} + {cell.defense_label}"


def cells(config: EvaluationConfig) -> list[PlannedCell]:
    """Every cell that the config asks for, those that do not apply included."""
    models = zip(config.model, unique([label_of(model) for model in config.model]), strict=True)
    sources = [item.transfer if isinstance(item, Transfer) else None for item in config.knowledge]
    labels = unique([label_of(source) for source in sources if source is not None])
    named = [
        (str(item), source, labels.pop(0) if source else None)
        for item, source in zip(config.knowledge, sources, strict=True)
    ]
    return [
        PlannedCell(
            model,
            model_label,
            defense.stack,
            defense.label,
            entry.attack,
            entry.label,
            goal,
            threat,
            knowledge,
            source,
            source_label,
            seed,
        )
        for (model, model_label), threat, defense, (knowledge, source, source_label), entry, goal, seed in product(
            models, config.threat, config.defenses, named, config.attacks, config.goal, config.seed
        )
    ]


def unique(labels: Sequence[str]) -> list[str]:
    """Number labels that repeat: 'a', 'a#2'."""
    repeats = [labels[:place].count(label) for place, label in enumerate(labels)]
    return [f"{label}#{repeat + 1}" if repeat else label for label, repeat in zip(labels, repeats, strict=True)]


def trials(
    cell: PlannedCell,
    victim: Network,
    attacks: Sequence[tuple[Way, Attack]],
    environment: str,
    config: EvaluationConfig,
) -> tuple[Trial, ...]:
    """A trial for each way, with the attack as it is there: one that learns has learned."""
    return tuple(
        Trial(
            way.name,
            attack,
            way.network,
            victim,
            cell.goal,
            cell.threat,
            cell.seed,
            drop=(
                config.early_stop
                and way.name in _DROPPING
                and not victim.randomized
                and not isinstance(attack, LearnedAttack)
            ),
            environment=environment,
            max_queries=config.max_queries,
            eot=_draws(way, victim, config),
            scoring_draws=config.scoring_draws if victim.randomized else 1,
        )
        for way, attack in attacks
    )


def _draws(way: Way, victim: Network, config: EvaluationConfig) -> int:
    """Draws that a gradient is averaged over."""
    if way.name == "smoothed" and not victim.randomized:
        return min(SMOOTHED, config.eot)
    return config.eot if way.network.randomized else 1


def ways(
    cell: PlannedCell,
    victim: Defended,
    bridges: Sequence[tuple[str, Network]],
    source: Network | None,
    home: Network | None,
) -> tuple[Way, ...]:
    """The ways in which the attacker of a cell tries. Raises NotApplicable.

    An adaptive attacker goes through the defense (gradient, or bpda where a stage is not differentiable: then also with
    the identity for each surrogate), through its relaxed backward where it has one, through a smoothed network where
    there is either, and takes the oblivious points too: each image counts by the best of them.
    `bridges`: networks with other ways back, by name. `home`: where an attack that learns once does so.
    """
    found = _ways(cell, victim, bridges, source, home)
    for way in found:
        applicable(cell.attack, cell.label, cell.threat, way.network.access)
    return tuple(found)


def _ways(
    cell: PlannedCell,
    victim: Defended,
    bridges: Sequence[tuple[str, Network]],
    source: Network | None,
    home: Network | None,
) -> list[Way]:
    name, bare = name_of(cell), f"{name_of(cell)}, without what it adds after training"
    if source is not None:
        return [Way("transfer", source, label_of(cell.source) if cell.source is not None else "")]
    if cell.knowledge == "oblivious":
        if victim.oblivious is None:
            raise NotApplicable(
                "nothing is added after training that an oblivious attacker could ignore. Use knowledge: adaptive"
            )
        return [Way("oblivious", home or victim.oblivious, cell.model_label if home else bare)]
    if home is not None:
        return [Way("learned", home, cell.model_label)]
    learned = cell.attack if isinstance(cell.attack, LearnedAttack) else None
    found = [Way("learned" if learned else _direct(cell.attack, victim.network), victim.network, name)]
    if victim.relaxed is not None and (learned.fit_access if learned else cell.attack.access) == "gradients":
        found.append(Way("relax", victim.relaxed, name))
    if learned is None and cell.attack.access == "gradients":
        found += [Way(how, network, name) for how, network in bridges]
    if victim.oblivious is not None and (learned or cell.attack.access != "transfer"):
        found.append(Way("oblivious", victim.oblivious, bare))
    return found


def _direct(attack: Attack, network: Network) -> str:
    if attack.access != "gradients":
        return "queries" if attack.access != "transfer" else "transfer"
    return "gradient" if all(stage.differentiable for stage in network.stages) else "bpda"
