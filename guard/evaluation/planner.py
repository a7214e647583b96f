"""Planning: prepare every network that an evaluation needs, let attacks learn, and lay out the trials of each cell."""

from collections.abc import Iterator
from dataclasses import dataclass

from guard.building import label_of
from guard.config import EvaluationConfig
from guard.defense import Stack
from guard.errors import ContractError, InputError, NotApplicable
from guard.evaluation.fitting import Fitting
from guard.evaluation.job import Job
from guard.evaluation.network import Network
from guard.evaluation.outcome import check_target
from guard.evaluation.plan import Planned, PlannedCell, Way, cells, name_of, trials, ways
from guard.evaluation.prepare import Defended, Workshop
from guard.evaluation.result import Status
from guard.learned import LearnedAttack
from guard.source import ModelSource


@dataclass(frozen=True)
class _Ready:
    """A cell whose networks stand, and the ways in which its attacker tries."""

    cell: PlannedCell
    victim: Network
    ways: tuple[Way, ...]


class Planner:
    """Plans an evaluation. Every network is built once."""

    def __init__(self, config: EvaluationConfig, workshop: Workshop, fitting: Fitting, environment: str) -> None:
        self._config, self._workshop, self._fitting = config, workshop, fitting
        self._environment = environment
        self._networks: dict[tuple[int, ...], Defended | str] = {}

    def plan(self) -> list[Planned]:
        """The trials of each cell. Raises InputError."""
        for goal in self._config.goal:
            check_target(goal, self._config.dataset.num_classes)
        wanted = cells(self._config)
        self._workshop.announce(self._named(wanted))
        ready = [self._ready(cell) for cell in wanted]
        self._fitting.announce(
            job for item in ready if isinstance(item, _Ready) for job in self._jobs(item) if job is not None
        )
        result = [item if isinstance(item, Planned) else self._planned(item) for item in ready]
        refused = [item.refused for item in result if item.refused is not None]
        if len(refused) == len(result) and all(status == "NOT_APPLICABLE" for status, _ in refused):
            raise InputError(refused[0][1])
        return result

    def _named(self, wanted: list[PlannedCell]) -> Iterator[tuple[ModelSource, Stack, str]]:
        """Every network that is asked for."""
        for cell in wanted:
            yield cell.model, cell.defense, name_of(cell)
            if cell.source is not None:
                yield cell.source, Stack(), label_of(cell.source)
            if _learns_once(cell):
                yield cell.model, Stack(), cell.model_label

    def _ready(self, cell: PlannedCell) -> _Ready | Planned:
        try:
            victim = self._defended(cell.model, cell.defense, name_of(cell))
            source = None
            if cell.source is not None:
                source = self._defended(cell.source, Stack(), label_of(cell.source)).network
            home = None
            if _learns_once(cell):
                home = self._defended(cell.model, Stack(), cell.model_label).network
            others = self._workshop.bridges(victim, cell.threat)
            return _Ready(cell, victim.network, ways(cell, victim, others, source, home))
        except (NotApplicable, ContractError) as error:
            return Planned(cell, refused=_refused(error))

    def _planned(self, ready: _Ready) -> Planned:
        try:
            found = [None if job is None else self._fitting.fitted(job) for job in self._jobs(ready)]
        except (NotApplicable, ContractError) as error:
            return Planned(ready.cell, refused=_refused(error))
        attacks = [ready.cell.attack if fit is None else fit[0] for fit in found]
        return Planned(
            ready.cell,
            ready.victim,
            trials(
                ready.cell,
                ready.victim,
                list(zip(ready.ways, attacks, strict=True)),
                self._environment,
                self._config,
            ),
            fits=tuple(fit[1] for fit in found if fit is not None),
        )

    def _jobs(self, ready: _Ready) -> list[Job | None]:
        """What the attack has to learn for each way; None where it learns nothing."""
        cell, attack = ready.cell, ready.cell.attack
        if not isinstance(attack, LearnedAttack):
            return [None] * len(ready.ways)
        return [Job(attack, cell.label, way.network, way.on, cell.goal, cell.threat, cell.seed) for way in ready.ways]

    def _defended(self, source: ModelSource, stack: Stack, name: str) -> Defended:
        place = (id(source), *map(id, stack.members))
        if place not in self._networks:
            try:
                self._networks[place] = self._workshop.defended(source, stack, name)
            except ContractError as error:
                self._networks[place] = str(error)
        found = self._networks[place]
        if isinstance(found, str):
            raise ContractError(found)
        return found


def _learns_once(cell: PlannedCell) -> bool:
    """Whether the attack learns on the undefended model, whatever the defense."""
    return isinstance(cell.attack, LearnedAttack) and not cell.attack.refit and cell.source is None


def _refused(error: NotApplicable | ContractError) -> tuple[Status, str]:
    return "NOT_APPLICABLE" if isinstance(error, NotApplicable) else "INVALID", str(error)
