"""What each lever on the speed of PGD is worth: alone on the bare loop, and as guard pulls them.

    GUARD_DATA=... GUARD_VICTIMS=.../published_models.py python -m tests.benchmarks.levers [VICTIM ...] [--images N]

Ratios are of CPU seconds to the bare loop at guard's batch size; a lever counts if the robust accuracy beside it is not
higher than the loop's.
"""

import copy
from collections.abc import Callable

import torch
from guard_plugins.attacks.fast_pgd import FastPGD
from guard_plugins.attacks.pgd import PGD
from torch import Tensor, nn

from guard.execution import faster
from tests.benchmarks.bare import bare, selected, step_size
from tests.benchmarks.measure import Counted, Outcome, Run, batched, side_by_side, table
from tests.benchmarks.pgd import guard
from tests.benchmarks.victims import Victim

Execution = Callable[[nn.Module, Tensor], nn.Module]
"""execution(model, images) -> the same function of images, executed otherwise."""


class _Channels(nn.Module):
    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.contiguous(memory_format=torch.channels_last))
        return logits


class _BFloat16(nn.Module):
    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.model(images)
        return logits.float()


EXECUTIONS: dict[str, Execution] = {
    "channels_last": _Channels,
    "channels_last, BatchNorm folded": faster,
    "bf16": _BFloat16,
    "bf16, channels_last, BatchNorm folded": lambda model, images: _BFloat16(faster(model, images), images),
}


def on(execution: Execution, run: Run) -> Run:
    """The same run on another execution of the model, which is made once."""
    made: list[nn.Module] = []

    def other(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        if not made:
            made.append(execution(model.model if isinstance(model, Counted) else model, images[:4]))
        return run(made[0], images, labels, index)

    return other


def levers(victim: Victim, epsilon: float) -> dict[str, Run]:
    """Each lever by its name, the bare loop first."""
    size, steps = victim.batch_size, victim.steps
    loop, pgd, fast = bare(epsilon, steps, step_size(epsilon, steps)), PGD(steps=steps), FastPGD()
    runs = {f"bare loop, {size} at once": batched(loop, size)}
    runs |= {f"{number} at once": batched(loop, number) for number in (1, 8, 32, 128) if number != size}
    runs |= {name: batched(on(execution, loop), size) for name, execution in EXECUTIONS.items()}
    runs["guard pgd: faster execution"] = batched(guard(pgd, epsilon, drop=False), size)
    runs["+ bf16"] = batched(guard(pgd, epsilon, drop=False, bf16=True), size)
    runs["guard pgd: faster execution, active set"] = batched(guard(pgd, epsilon), size)
    runs["+ bf16 "] = batched(guard(pgd, epsilon, bf16=True), size)
    runs["guard fast-pgd: faster execution, active set"] = batched(guard(fast, epsilon), size)
    runs["+ bf16  "] = batched(guard(fast, epsilon, bf16=True), size)
    return runs


def line(outcome: Outcome, floor: Outcome) -> list[str]:
    """One row of the table."""
    milliseconds = 1000 * outcome.seconds / len(outcome.broken)
    ratio = f"{outcome.seconds / floor.seconds:.2f}"
    return [outcome.name, f"{milliseconds:.2f}", ratio, f"{100 * outcome.robust:.1f}"]


def main() -> None:
    """Print a table for each victim."""
    for found, epsilon in selected(__doc__, 128):
        outcomes = side_by_side(levers(found, epsilon), found, epsilon)
        print(f"\n{found.name}, linf {epsilon:.4g}, {found.steps} steps, {len(found.images)} images, median of 3\n")
        rows = [line(outcome, outcomes[0]) for outcome in outcomes]
        print(table(["", "CPU ms/image", "to bare", "robust %"], rows), flush=True)


if __name__ == "__main__":
    main()
