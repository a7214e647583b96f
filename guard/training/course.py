"""Course: how far a training is, and what it has seen."""

import json
from dataclasses import dataclass, field
from typing import Any, Self

from guard.recipe import Training
from guard.training.record import Epoch
from guard.training.validation import Accuracies, Seen

_RETURNS = 3  # how often a training goes back before it stops


@dataclass
class Course:
    """How far a training is, and what it has seen."""

    epoch: int = 0
    """The one it is in, from 0."""
    batch: int = 0
    """The next one of that epoch."""
    loss: float = 0.0
    """Summed over the images of the epoch so far."""
    seconds: float = 0.0
    """Of the epoch so far."""
    returns: int = 0
    """How often it went back."""
    events: list[str] = field(default_factory=list)
    """Of the epoch so far."""
    kept: int | None = None
    """The epoch whose weights are kept, from 1."""
    stopped: bool = False
    epochs: list[Epoch] = field(default_factory=list)

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(vars(self) | {"epochs": [epoch.model_dump() for epoch in self.epochs]})

    @classmethod
    def of(cls, text: str) -> Self:
        """What `dump` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(**values | {"epochs": [Epoch.model_validate(epoch) for epoch in values["epochs"]]})

    def over(self, training: Training) -> bool:
        """Whether there is nothing left to do."""
        return self.stopped or self.epoch >= training.epochs

    def leads(self, seen: Seen | None, training: Training, robust: bool) -> bool:
        """Whether the epoch that just ended is the one to keep; of equals the later one."""
        if self.kept is None or not seen or training.keep == "last":
            return True
        best = self.epochs[self.kept - 1]
        if isinstance(seen, dict):
            first = next(iter(seen))
            return seen[first] >= best.figures[first]
        if robust and seen.pgd is not None:
            return seen.pgd >= (best.pgd or 0)
        return seen.clean >= (best.clean or 0)

    def react(self, alarm: str, training: Training) -> bool:
        """Write an alarm down and what is done about it; whether the epoch is to be done again."""
        again = training.overfitting == "roll-back" and self.returns < _RETURNS
        if again:
            self.returns += 1
            done = f"went back to the start of epoch {self.epoch + 1}, at half the learning rate"
        else:
            self.stopped = True
            done = "stopped" if self.kept is None else f"stopped, and kept epoch {self.kept}"
        self.events.append(f"epoch {self.epoch + 1}: {alarm}; {done}")
        return again

    def close(self, lr: float, loss: float, seen: Seen | None, noted: dict[str, float]) -> None:
        """Write an epoch down, and what was noted in it, and begin the next."""
        accuracies = seen._asdict() if isinstance(seen, Accuracies) else {}
        judged = seen if isinstance(seen, dict) else {}
        figures = judged | {name: value for name, value in noted.items() if name not in judged}
        done = Epoch(
            epoch=self.epoch + 1,
            lr=lr,
            loss=loss,
            figures=figures,
            seconds=self.seconds,
            events=tuple(self.events),
            **accuracies,
        )
        self.epochs.append(done)
        self.events = []
        self.epoch += 1
        self.restart()

    def restart(self) -> None:
        """Stand at the beginning of the epoch."""
        self.batch, self.loss, self.seconds = 0, 0.0, 0.0
