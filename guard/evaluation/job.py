"""Jobs: an attack that is to learn, against what, and whether it can."""

import math
from dataclasses import dataclass

from pydantic import ValidationError

from guard.attack import MinimalAttack
from guard.config import GoalSetting, Targets
from guard.errors import InputError
from guard.evaluation.nearest import unbounded
from guard.evaluation.network import Network
from guard.evaluation.result import Fit
from guard.learned import LearnedAttack
from guard.threat import ThreatModel
from guard.victim import ACCESS

_HOW = {"epochs", "batch_size", "lr", "images", "refit", "weights"}  # it learned; what it is, are the others


class Note(Fit):
    """What is kept beside what an attack learned."""

    prints: str
    """Of the images that it learned on: see `Overlap`."""


@dataclass(frozen=True)
class Job:
    """An attack that is to learn, and against what."""

    attack: LearnedAttack
    label: str
    network: Network
    on: str
    """What a report calls the network."""
    goal: GoalSetting
    threat: ThreatModel
    seed: int

    @property
    def who(self) -> str:
        """What errors call the attack."""
        return f"attack '{self.label}'"

    @property
    def ball(self) -> ThreatModel:
        """What it learns to stay in: nothing, where it looks for the nearest points."""
        return unbounded(self.threat.norm) if isinstance(self.attack, MinimalAttack) else self.threat

    @property
    def place(self) -> tuple[object, ...]:
        """What tells it apart within a run."""
        return id(self.attack), id(self.network), self.goal, self.ball, self.seed

    @property
    def must_learn(self) -> bool:
        """Whether it has to, and is not there already."""
        return not self.attack.learned and self.attack.weights is None

    @property
    def refusal(self) -> str | None:
        """Why the attack cannot learn that; None where it can, or need not."""
        if not self.must_learn:
            return None
        if math.isinf(self.ball.epsilon) and not isinstance(self.attack, MinimalAttack):
            return f"{self.who} learns inside a ball, and {self.threat} is none. Give a finite epsilon"
        needed, given = self.attack.fit_access, self.network.access
        if ACCESS.index(needed) > ACCESS.index(given):
            return f"{self.who} needs {needed} to learn, and the model gives {given} only. Use one that asks for less"
        if isinstance(self.goal, Targets) and self.goal.targets in ("random", "least-likely"):
            return (
                f"{self.who} learns one aim for all images, and the goal is {self.goal.targets}. "
                f"Give goal: {{targets: CLASS}}, or next"
            )
        return None

    def read(self, note: str | None, where: str) -> Note:
        """How something was learned, and that it is this. Raises InputError."""
        try:
            found = Note.model_validate_json(note or "")
        except ValidationError as error:
            raise InputError(
                f"{where} does not say what it was learned on. Give what guard wrote: RUN/attacks/LABEL.safetensors"
            ) from error
        norm = found.norm if found.epsilon is None else self.threat.norm  # without a bound it learned for all norms
        wanted = self.attack.model_dump(mode="json") | {"goal": str(self.goal), "norm": norm}
        learned = found.attack | {"goal": found.goal, "norm": found.norm}
        for key in wanted.keys() - _HOW:
            if wanted[key] != learned.get(key):
                raise InputError(
                    f"{where} was learned with {key} {learned.get(key)}, and {self.who} has {wanted[key]}. "
                    f"Give the same {key}, or let it learn anew"
                )
        return found
