"""AutoAttack side by side: guard's, the same budgets composed from torchattacks, and what its forwards and backwards
cost bare.

    GUARD_DATA=... GUARD_VICTIMS=.../published_models.py python -m tests.benchmarks.autoattack VICTIM [--images N]

Where reference/VICTIM.npz lies beside GUARD_VICTIMS, its outcomes for the same images stand there too.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from guard_plugins.attacks.autoattack import AutoAttack
from guard_plugins.attacks.fast_autoattack import FastAutoAttack
from torch import Tensor, nn

from guard import Attack, Goal, Rng, ThreatModel
from guard import Victim as Door
from guard.evaluation.crafting import Crafted, craft
from guard.evaluation.network import Network
from guard.execution import faster
from tests.benchmarks.measure import heading, judged, prepare, table
from tests.benchmarks.peers import standard_attacks
from tests.benchmarks.victims import data, published

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
DATASETS = {"mnist": 0.3, "cifar10": 2 / 255}
"""Each with the epsilon of the reference runs."""


@dataclass
class Done:
    """What one run of one contender did."""

    stages: dict[str, tuple[float, float]]
    """For each stage, the share of the images that stand after it, and its CPU seconds."""
    broken: Tensor
    """bool (N,), a clean error included."""
    seconds: float
    """CPU seconds in all."""
    crafted: Crafted | None = None
    """With guard's counts."""

    @property
    def stand(self) -> float:
        """Share of the images that stand in the end."""
        return 1 - self.broken.float().mean().item()


SECONDS: dict[str, float] = {}
"""CPU seconds of each member of guard's autoattack so far."""


class Timed(Attack):
    """Another attack, timed under a name of its own."""

    name = "timed"

    inner: Attack
    what: str

    def perturb(self, victim: Door, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        start = time.process_time()
        adversarial = self.inner.perturb(victim, images, goal, threat, rng)
        SECONDS[self.what] = SECONDS.get(self.what, 0.0) + time.process_time() - start
        return adversarial


class TimedAutoAttack(AutoAttack):
    """guard's autoattack; how long each member takes lands in `SECONDS`."""

    name = "timed-autoattack"

    def members(self, threat: ThreatModel) -> Sequence[tuple[str, Attack]]:
        return [(name, Timed(inner=attack, what=name)) for name, attack in super().members(threat)]


@dataclass(frozen=True)
class Scene:
    """A victim with the images that are attacked, all of them, and the radius."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    epsilon: float

    def wrong(self, adversarial: Tensor, rows: Tensor, who: str) -> Tensor:
        """Which of these points the model gets wrong, bool (n,)."""
        return judged(self.model, self.images[rows], self.labels[rows], adversarial, self.epsilon, who)

    @property
    def rows(self) -> Tensor:
        """All of them."""
        return torch.arange(len(self.images))


def guard(scene: Scene, attack: Attack, seed: int) -> Done:
    """An attack as an evaluation runs it."""
    network, threat = Network(scene.model), ThreatModel(norm="linf", epsilon=scene.epsilon)
    network.search(scene.images)
    SECONDS.clear()
    pieces, start = [], time.process_time()
    for rows in scene.rows.split(network.batch_size(scene.images)):
        goal = Goal(scene.labels[rows])
        pieces.append(
            craft(attack, network, scene.images[rows], goal, threat, index=rows, seed=seed, drop=True, who=attack.name)
        )
    seconds = time.process_time() - start
    crafted = Crafted.joined(pieces)
    broken = scene.wrong(crafted.adversarial, scene.rows, attack.name)
    stages, stand = {}, 1.0
    for stage in SECONDS:
        stand -= crafted.part(stage).broke.float().mean().item()
        stages[stage] = stand, SECONDS[stage]
    return Done(stages, broken, seconds, crafted)


def torchattacks(scene: Scene, seed: int) -> Done:
    """The same four attacks with the same budgets, each on what those before left."""
    broken, stages, total = scene.wrong(scene.images, scene.rows, "clean"), {}, 0.0
    for name, attack in zip(STAGES, standard_attacks(scene.model, scene.epsilon, seed), strict=True):
        seconds = 0.0
        for rows in (~broken).nonzero().squeeze(1).split(Network(scene.model).batch_size(scene.images)):
            start = time.process_time()
            adversarial = attack(scene.images[rows], scene.labels[rows]).detach()
            seconds += time.process_time() - start
            broken[rows] = scene.wrong(adversarial, rows, name)
        stages[name] = 1 - broken.float().mean().item(), seconds
        total += seconds
    return Done(stages, broken, total)


def bare_costs(scene: Scene) -> tuple[float, float]:
    """CPU seconds of a forward and of a backward to one image, at the best batch size and memory format."""

    def best(model: nn.Module, images: Tensor, gradient: bool) -> float:
        times = []
        for _ in range(5):
            points, start = images.clone().requires_grad_(gradient), time.process_time()
            for _ in range(10):
                with torch.set_grad_enabled(gradient):
                    total = model(points).sum()
                    if gradient:
                        torch.autograd.grad(total, points)
            times.append((time.process_time() - start) / 10 / len(images))
        return min(times)

    models = scene.model, faster(scene.model, scene.images[:4])
    batches = [scene.images[:size] for size in (32, 64, 128, 250)]
    forward, both = (min(best(m, x, gradient) for m in models for x in batches) for gradient in (False, True))
    return forward, both - forward


def reference(scene: Scene) -> tuple[Tensor, float] | None:
    """Which images the authors' code broke, and its CPU seconds for 1,000 of them."""
    path = Path(os.environ["GUARD_VICTIMS"]).parent / "reference" / f"{scene.name}.npz"
    if not path.is_file():
        return None
    with np.load(path) as file:
        if abs(float(file["epsilon"]) - scene.epsilon) > 1e-6 or len(file["robust"]) < len(scene.images):
            return None
        return torch.from_numpy(~file["robust"][: len(scene.images)]), float(file["cpu_seconds"])


def spread(values: Sequence[float], unit: float = 1) -> str:
    """Mean, and the range where there is one."""
    low, high, mean = unit * min(values), unit * max(values), unit * sum(values) / len(values)
    return f"{mean:.1f}" if high - low < 0.05 else f"{mean:.1f} ({low:.1f} to {high:.1f})"


def report(scene: Scene, ours: list[Done], fast: list[Done], theirs: list[Done]) -> None:
    """Print it."""
    forward, backward = bare_costs(scene)

    def bare(done: Done, stage: str | None) -> float:
        assert done.crafted is not None
        counts = done.crafted if stage is None else done.crafted.part(stage)
        return float(counts.forwards.sum()) * forward + float(counts.backwards.sum()) * backward

    rows = [
        line(stage, [d.stages[stage] for d in ours], [d.stages[stage] for d in theirs], [bare(d, stage) for d in ours])
        for stage in STAGES
    ]
    ends = [[(done.stand, done.seconds) for done in group] for group in (ours, theirs)]
    rows.append(line("in all", ends[0], ends[1], [bare(done, None) for done in ours]))
    print(table(["", "guard: robust %", "CPU s", "torchattacks: robust %", "CPU s", "bare CPU s", "to both"], rows))
    print(f"\nbare: {1000 * forward:.3f} ms an image for a forward, {1000 * backward:.3f} for a backward")
    seconds = spread([done.seconds for done in fast])
    print(f"guard's fast-autoattack: {spread([done.stand for done in fast], 100)} % in {seconds} CPU s")
    others = {"fast-autoattack": _any(fast)} | ({"torchattacks": _any(theirs)} if theirs else {})
    found = reference(scene)
    if found is not None:
        others["the authors' code"], seconds_then = found
        stand = 100 * (~found[0]).float().mean().item()
        print(f"the authors' code, seed 0, then: {stand:.1f} %; {seconds_then:.0f} CPU s for 1,000 images")
    guards = _any(ours)
    for name, broken in others.items():
        alone = [mask.nonzero().squeeze(1).tolist() for mask in (guards & ~broken, broken & ~guards)]
        print(
            f"against {name}, any seed: {len(alone[0])} images that autoattack alone breaks {alone[0][:10]}, ", end=""
        )
        print(f"{len(alone[1])} that it alone misses {alone[1][:10]}")


def _any(group: list[Done]) -> Tensor:
    return torch.stack([done.broken for done in group]).any(0)


def line(name: str, ours: list[tuple[float, float]], theirs: list[tuple[float, float]], bare: list[float]) -> list[str]:
    """One row: shares and seconds of each seed, and the bare cost of guard's counts."""
    mine, bare_mean = sum(seconds for _, seconds in ours) / len(ours), sum(bare) / len(bare)
    cells = [name, spread([stand for stand, _ in ours], 100), f"{mine:.1f}"]
    if not theirs:
        return [*cells, "-", "-", f"{bare_mean:.1f}", f"- / {mine / max(bare_mean, 1e-9):.2f}"]
    other = sum(seconds for _, seconds in theirs) / len(theirs)
    ratios = f"{mine / max(other, 1e-9):.2f} / {mine / max(bare_mean, 1e-9):.2f}"
    return [*cells, spread([stand for stand, _ in theirs], 100), f"{other:.1f}", f"{bare_mean:.1f}", ratios]


def main() -> None:
    """Run all seeds of all contenders in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("victim", help="a function of the file that GUARD_VICTIMS names: mnist_..., cifar10_...")
    parser.add_argument("--images", type=int, default=200, help="the first of the test split")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    prepare()
    model, dataset = published(arguments.victim), arguments.victim.split("_")[0]
    if model is None:
        raise SystemExit("GUARD_VICTIMS is unset")
    test = data(dataset)[: arguments.images]
    scene = Scene(arguments.victim, model, test.floats(), test.labels, DATASETS[dataset])
    print(
        f"{heading()}\n\n{scene.name}, linf {scene.epsilon:.4g}, {arguments.images} images, {arguments.seeds} seeds\n"
    )
    ours, fast, theirs = [], [], []
    for seed in range(arguments.seeds):
        ours.append(guard(scene, TimedAutoAttack(), seed))
        fast.append(guard(scene, FastAutoAttack(), seed))
        try:
            theirs.append(torchattacks(scene, seed))
        except ImportError:
            print("(torchattacks is not installed: left out)")
    report(scene, ours, fast, theirs)


if __name__ == "__main__":
    main()
