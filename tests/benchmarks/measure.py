"""What a contender costs and finds, side by side with others in one run, and the table that says so."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from guard import ThreatModel
from guard.cli import keep_memory
from guard.goal import correct
from tests.benchmarks.victims import Victim

Run = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""run(model, images, labels, index) -> adversarial images."""


def batched(run: Run, size: int) -> Run:
    """The same on `size` images at once."""

    def parts(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        batches = torch.arange(len(images)).split(size)
        return torch.cat([run(model, images[rows], labels[rows], index[rows]) for rows in batches])

    return parts


class Counted(nn.Module):
    """A model that counts the images of its forwards and of the backwards through it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        logits: Tensor = self.model(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@dataclass
class Outcome:
    """What one contender did to a victim's images."""

    name: str
    broken: Tensor
    """Images that it broke, as the model itself judges in float32, bool (N,)."""
    forwards: float
    backwards: float
    """For an image, on average."""
    times: list[float] = field(default_factory=list)

    @property
    def robust(self) -> float:
        """Share of the images that stand."""
        return 1 - self.broken.float().mean().item()

    @property
    def seconds(self) -> float:
        """Median of the repetitions, CPU seconds of the process for all images."""
        return statistics.median(self.times)


def judged(model: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor, epsilon: float, name: str) -> Tensor:
    """Which images are broken, bool (N,). What leaves the ball or [0, 1] is an error of the benchmark."""
    threat = ThreatModel(norm="linf", epsilon=epsilon)
    if not threat.contains(adversarial, images).all() or adversarial.min() < 0 or adversarial.max() > 1:
        raise ValueError(f"{name} left the ball of {threat} or the range")
    with torch.no_grad():
        return ~torch.cat([correct(model(x), y) for x, y in zip(adversarial.split(64), labels.split(64), strict=True)])


def attacked(name: str, run: Run, victim: Victim, epsilon: float, outcome: Outcome | None = None) -> Outcome:
    """One repetition: CPU seconds of the attack alone; the first, which is the warm-up, also counts and judges."""
    model = Counted(victim.model) if outcome is None else victim.model
    start = time.process_time()
    adversarial = run(model, victim.images, victim.labels, torch.arange(len(victim.images)))
    seconds = time.process_time() - start
    if outcome is not None:
        outcome.times.append(seconds)
        return outcome
    assert isinstance(model, Counted)
    broken = judged(victim.model, victim.images, victim.labels, adversarial, epsilon, name)
    return Outcome(name, broken, model.forwards / len(broken), model.backwards / len(broken))


def prepare() -> None:
    """One thread, and memory kept as the command line keeps it, for every contender alike."""
    torch.set_num_threads(1)
    keep_memory()


def side_by_side(runs: dict[str, Run], victim: Victim, epsilon: float, repeats: int = 3) -> list[Outcome]:
    """All contenders in turn, and that several times, so that what else the machine does meets all of them."""
    prepare()
    outcomes = {name: attacked(name, run, victim, epsilon) for name, run in runs.items()}
    for _ in range(repeats):
        for name, run in runs.items():
            attacked(name, run, victim, epsilon, outcomes[name])
    return list(outcomes.values())


def heading() -> str:
    """When and on what."""
    cpu, flags = platform.processor() or platform.machine(), set[str]()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = dict(line.split(":", 1) for line in information.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        cpu, flags = fields.get("model name", cpu), set(fields.get("flags", "").split())
    features = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    cores = len(os.sched_getaffinity(0))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {cpu} ({', '.join(features)}), {cores} cores, 1 thread, "
        f"torch {torch.__version__}"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column to the left, figures to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
