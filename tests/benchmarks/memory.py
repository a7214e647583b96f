"""Peak memory: the bare loop and guard at the same batch size, and an evaluation of 1,000 images and of 10,000.

    GUARD_DATA=... GUARD_VICTIMS=.../published_models.py python -m tests.benchmarks.memory [VICTIM]

Each in a process of its own; MiB of resident memory above what it had before it began.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from guard_plugins.attacks.pgd import PGD

from tests.benchmarks.bare import bare, step_size
from tests.benchmarks.measure import heading, table
from tests.benchmarks.pgd import guard
from tests.benchmarks.victims import correct, published

BATCH, EPSILON, STEPS = 128, 2 / 255, 10


def status(key: str) -> float:
    """Of this process on Linux, in MiB: VmRSS, what it holds, or VmHWM, the most that it held since `begin`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def begin() -> float:
    """Forget what was held before; returns what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def attack(who: str, name: str) -> float:
    """What one batch takes under the bare loop or under guard."""
    model, index = published(name), torch.arange(BATCH)
    assert model is not None, "set GUARD_VICTIMS"
    images, labels = correct(model, name.split("_")[0], BATCH)
    with torch.no_grad():
        model(images[:1])
    loop = bare(EPSILON, STEPS, step_size(EPSILON, STEPS))
    run = loop if who == "bare loop" else guard(PGD(steps=STEPS), EPSILON, drop=False)
    before = begin()
    run(model, images, labels, index)
    return status("VmHWM") - before


def evaluate(count: int, name: str) -> float:
    """What an evaluation of the first so many test images takes."""
    import tempfile

    import guard

    os.environ["GUARD_CACHE"] = tempfile.mkdtemp()
    dataset = "cifar10" if name.startswith("cifar10") else "mnist"
    threat = {"norm": "linf", "epsilon": EPSILON}

    def run(limit: int) -> None:
        model = f"{os.environ['GUARD_VICTIMS']}:{name}"
        guard.evaluate(model, dataset, attacks=["fast-pgd"], threat=threat, limit=limit)

    run(256)
    before = begin()
    run(count)
    return status("VmHWM") - before


def main() -> None:
    """Print the table."""
    name = sys.argv[1] if len(sys.argv) > 1 else "cifar10_resnet4b"
    rows = []
    for what in ("bare loop", "guard pgd, no drop", "evaluation of 1,000 images", "evaluation of 10,000 images"):
        child = [sys.executable, "-m", "tests.benchmarks.memory", name, what]
        taken = float(subprocess.run(child, capture_output=True, text=True, check=True).stdout.split()[-1])
        rows.append([what, f"{taken:.0f}"])
    print(heading())
    print(table([f"{name}, batch {BATCH}", "MiB"], rows))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        images = sys.argv[2].rsplit(" ", 2)[-2].replace(",", "")
        print(evaluate(int(images), sys.argv[1]) if images.isdigit() else attack(sys.argv[2], sys.argv[1]))
    else:
        main()
