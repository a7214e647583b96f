"""The plan: which cells an evaluation has, and the ways in which the attacker tries inside each."""

from dataclasses import dataclass
from functools import cached_property

from guard.attack import Attack
from guard.config import EvaluationConfig, GoalSetting, Transfer
from guard.defense import Stack
from guard.errors import NotApplicable
from guard.evaluation.keys import component_key, key
from guard.evaluation.prepare import Defended, Network, label_of
from guard.source import ModelSource
from guard.threat import ThreatModel
from guard.victim import ACCESS


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

    @cached_property
    def craft_key(self) -> str | None:
        """Of what decides the adversarial images, but for the images themselves and the stand-in for the goal."""
        if self.crafted_on.key is None:
            return None
        goal = self.goal if isinstance(self.goal, str) else self.goal.model_dump_json()
        parts = [component_key(self.attack), self.crafted_on.key, goal, self.threat.model_dump_json(), self.seed]
        return key(*parts, self.drop, self.environment)

    @cached_property
    def key(self) -> str | None:
        """Of all that decides the outcome; None where something in it cannot be hashed."""
        if self.craft_key is None or self.scored_on.key is None:
            return None
        return key(self.craft_key, self.scored_on.key)


def cells(config: EvaluationConfig, model_labels: dict[int, str]) -> list[PlannedCell]:
    """Every cell that the config asks for, those that do not apply included."""
    planned = []
    for number, model in enumerate(config.model):
        for threat in config.threat:
            for defense in config.defenses:
                for knowledge in config.knowledge:
                    source = knowledge.transfer if isinstance(knowledge, Transfer) else None
                    for entry in config.attacks:
                        for goal in config.goal:
                            for seed in config.seed:
                                planned.append(
                                    PlannedCell(
                                        model,
                                        model_labels[number],
                                        defense.stack,
                                        defense.label,
                                        entry.attack,
                                        entry.label,
                                        goal,
                                        threat,
                                        str(knowledge),
                                        source,
                                        None if source is None else label_of(source),
                                        seed,
                                    )
                                )
    return planned


def trials(cell: PlannedCell, victim: Defended, source: Network | None, environment: str) -> list[Trial]:
    """The ways in which the attacker of a cell tries. Raises NotApplicable.

    An adaptive attacker goes through the defense (gradient, or bpda where a stage is not differentiable), through its
    relaxed backward where it has one, and takes the oblivious points too: each image counts by the best of them.
    """
    if cell.threat.norm not in cell.attack.norms:
        known = ", ".join(sorted(cell.attack.norms))
        raise NotApplicable(f"attack '{cell.label}' works in {known}, not in {cell.threat.norm}. Use one of its norms")
    crafted_on: list[tuple[str, Network]] = []
    network = victim.network
    if source is not None:
        crafted_on = [("transfer", source)]
    if cell.knowledge == "adaptive":
        crafted_on = [(_direct(cell.attack, network), network)]
        if victim.relaxed is not None and cell.attack.access == "gradients":
            crafted_on.append(("relax", victim.relaxed))
        if victim.oblivious is not None and cell.attack.access != "transfer":
            crafted_on.append(("oblivious", victim.oblivious))
    if cell.knowledge == "oblivious":
        if victim.oblivious is None:
            raise NotApplicable(
                "nothing is added after training that an oblivious attacker could ignore. Use knowledge: adaptive"
            )
        crafted_on = [("oblivious", victim.oblivious)]
    for _, on in crafted_on:
        if ACCESS.index(cell.attack.access) > ACCESS.index(on.access):
            raise NotApplicable(
                f"attack '{cell.label}' needs {cell.attack.access}, and the model gives {on.access} only. "
                f"Use an attack that asks for less"
            )
    return [
        Trial(
            name,
            cell.attack,
            on,
            network,
            cell.goal,
            cell.threat,
            cell.seed,
            drop=name in ("gradient", "bpda", "queries", "relax") and not _randomized(network),
            environment=environment,
        )
        for name, on in crafted_on
    ]


def _direct(attack: Attack, network: Network) -> str:
    if attack.access != "gradients":
        return "queries" if attack.access != "transfer" else "transfer"
    return "gradient" if all(stage.differentiable for stage in network.stages) else "bpda"


def _randomized(network: Network) -> bool:
    return any(stage.randomized for stage in network.stages)
