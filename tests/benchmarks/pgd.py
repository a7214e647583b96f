"""PGD side by side: the bare loop, guard in several settings, and other libraries.

    GUARD_DATA=... GUARD_VICTIMS=.../published_models.py python -m tests.benchmarks.pgd [VICTIM ...] [--images N]

Ratios are of CPU seconds: to the bare loop, and to the fastest other library; "weaker" where more images stand than
that library leaves, by more than two standard errors.
"""

import math

from guard_plugins.attacks.fast_pgd import FastPGD
from guard_plugins.attacks.pgd import PGD
from torch import Tensor, nn

from guard import Attack, Goal, ThreatModel
from guard.evaluation.crafting import craft
from guard.evaluation.network import Network
from tests.benchmarks.bare import bare, selected, step_size
from tests.benchmarks.measure import Counted, Outcome, Run, batched, side_by_side, table
from tests.benchmarks.peers import LIBRARIES, peers
from tests.benchmarks.victims import Victim


def guard(attack: Attack, epsilon: float, *, drop: bool = True, bf16: bool = False) -> Run:
    """As an evaluation runs it, with its checks; the faster execution is made once, as there."""
    threat, networks = ThreatModel(norm="linf", epsilon=epsilon), dict[nn.Module, Network]()

    def run(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        inner = model.model if isinstance(model, Counted) else model
        network = networks.setdefault(inner, Network(inner))
        crafted = craft(
            attack, network, images, Goal(labels), threat,
            index=index, seed=0, drop=drop, who=attack.name, bf16=bf16,
        )  # fmt: skip
        if isinstance(model, Counted):
            model.forwards += int(crafted.forwards.sum())
            model.backwards += int(crafted.backwards.sum())
        return crafted.adversarial

    return run


def contenders(victim: Victim, epsilon: float) -> dict[str, Run]:
    """Each by its name in the table, the bare loop first."""
    steps, size = victim.steps, step_size(epsilon, victim.steps)
    pgd, fast = PGD(steps=steps), FastPGD()
    runs = {
        "bare loop": bare(epsilon, steps, size),
        "guard pgd, no drop": guard(pgd, epsilon, drop=False),
        "guard pgd": guard(pgd, epsilon),
        "guard pgd, bf16": guard(pgd, epsilon, bf16=True),
        "guard fast-pgd": guard(fast, epsilon),
        "guard fast-pgd, bf16": guard(fast, epsilon, bf16=True),
        **peers(epsilon, steps, size),
    }
    return {name: batched(run, victim.batch_size) for name, run in runs.items()}


def line(outcome: Outcome, outcomes: list[Outcome]) -> list[str]:
    """One row of the table."""
    images = len(outcome.broken)
    fastest = min((each for each in outcomes if each.name in LIBRARIES), key=lambda each: each.seconds, default=None)
    library = "-"
    if fastest is not None:
        noise = 2 * math.sqrt(fastest.robust * (1 - fastest.robust) / images)
        weaker = ", weaker" if outcome.robust > fastest.robust + noise else ""
        library = f"{outcome.seconds / fastest.seconds:.2f} ({fastest.name}{weaker})"
    return [
        outcome.name,
        f"{1000 * outcome.seconds / images:.2f}",
        f"{outcome.backwards:.1f}",
        f"{outcome.forwards:.1f}",
        f"{100 * outcome.robust:.1f}",
        f"{outcome.seconds / outcomes[0].seconds:.2f}",
        library,
    ]


def main() -> None:
    """Print a table for each victim."""
    for found, epsilon in selected(__doc__, 256):
        outcomes = side_by_side(contenders(found, epsilon), found, epsilon)
        columns = ["", "CPU ms/image", "gradients", "forwards", "robust %", "to bare", "to fastest library"]
        steps = f"{found.steps} steps (fast-pgd {FastPGD().steps})"
        count = f"{len(found.images)} images that it classifies correctly, {found.batch_size} at once"
        print(f"\n{found.name}, linf {epsilon:.4g}, {steps}, {count}, median of 3\n")
        print(table(columns, [line(outcome, outcomes) for outcome in outcomes]), flush=True)


if __name__ == "__main__":
    main()
