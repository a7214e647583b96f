"""What attacks that learn are worth: how often they succeed, how far they go, how fast they are, how alike they are.

    GUARD_DATA=... [GUARD_VICTIMS=.../published_models.py] python -m tests.benchmarks.learned WHAT

uap         fooling by the gradient's and by DeepFool's perturbation, beside random signs
advgan      attack success on MNIST, untargeted and for three targets, by both losses, at 0.3 and 0.2
black-box   static against dynamic distillation at equal queries, three seeds, and PGD carried over from the substitute
atn         success, distance, and whether the original class keeps the second place, for each beta
uniform     images per second, success and likeness of the perturbations, beside PGD and C&W

All learn on training images and are judged on test images. The MNIST network has the layers of LeNet5 in advertorch and
is trained here, on one thread, as is that of Fashion-MNIST. What was learned or trained once is kept in guard's cache.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import guard
from guard import Data, LearnedAttack, ThreatModel
from guard.goal import correct
from tests.benchmarks.lenet import trained
from tests.benchmarks.measure import heading, table
from tests.benchmarks.victims import data, published

TARGETS = (2, 5, 8)
"""Named before any of them was learned."""


def uap(given: argparse.Namespace) -> None:
    """Learned on 5,000 training images (DeepFool's, one by one: on 1,000), judged on 2,000 test images, at 10/255
    (Fashion-MNIST: 0.1)."""
    rows = []
    for dataset, net, epsilon in _victims():
        threat, test = ThreatModel(norm="linf", epsilon=epsilon), data(dataset)[:2000]
        images, plain = test.floats(), _answers(net, test.floats())
        rows.append([dataset, "random signs", *_fooled(net, images, plain, threat, _signs(images, epsilon)), "", ""])
        for by in ("gradient", "deepfool"):
            spec = {"name": "uap", "by": by, "images": 5000 if by == "gradient" else 1000}
            attack, seconds = _fitted(spec, net, dataset, threat)
            points = _crafted(attack, net, test, threat)
            passes = " ".join(f"{100 * epoch['figures']['fooled']:.1f}" for epoch in _note(attack)["epochs"])
            rows.append([dataset, by, *_fooled(net, images, plain, threat, points), passes, f"{seconds:.0f}"])
            print(f"({rows[-1]})", flush=True)
    print(table(["data", "perturbation", "fooled %", "l2", "held-out %, pass by pass", "seconds"], rows))


def advgan(given: argparse.Namespace) -> None:
    """On the images that the network classifies correctly; of a target, on those of other classes."""
    net, test, rows = trained("mnist"), data("mnist")[: given.images], []
    for epsilon, loss in ((0.3, "margin"), (0.3, "cross-entropy"), (0.2, "margin")):
        threat = ThreatModel(norm="linf", epsilon=epsilon)
        found, spent = [], 0.0
        for goal in ("untargeted", *TARGETS):
            spec = {"name": "advgan", "loss": loss, "images": given.learn, "epochs": given.epochs}
            settings = {} if goal == "untargeted" else {"goal": {"targets": goal}}
            attack, seconds = _fitted(spec, net, "mnist", threat, **settings)
            found.append(100 * _success(net, test, _crafted(attack, net, test, threat), goal))
            spent += seconds
            print(f"({loss} at {epsilon}, {goal}: {found[-1]:.1f})", flush=True)
        cells = [f"{value:.1f}" for value in (*found, sum(found[1:]) / len(TARGETS))]
        rows.append([f"{epsilon}", loss, *cells, f"{spent:.0f}"])
    columns = ["epsilon", "loss", "untargeted", *(f"target {target}" for target in TARGETS), "targets, mean", "seconds"]
    print(table(columns, rows))


def black_box(given: argparse.Namespace) -> None:
    """A row for each seed; the black box is a LeNet5 of which labels or logits are seen, the substitute a small-cnn."""
    net, test = trained("mnist"), data("mnist")[: given.images]
    threat, rows, columns = ThreatModel(norm="linf", epsilon=0.3), [], []
    right = correct(_logits(net, test.floats()), test.labels)
    broken: dict[str, list[Tensor]] = {"static": [], "dynamic": [], "pgd": []}
    for seed in range(3):
        cells = []
        for how in ("static", "dynamic"):
            rounds = 5
            asked = given.queries if how == "static" else given.queries // (1 + rounds)
            epochs = given.epochs if how == "static" else given.epochs * (1 + rounds)  # as many updates
            spec = {"name": "advgan", "distillation": how, "images": asked, "epochs": epochs, "answers": given.answers}
            spec |= {"distil_epochs": 20, "rounds": rounds}
            attack, seconds = _fitted(spec, net, "mnist", threat, seed=seed)
            substitute: Any = attack.module.substitute
            points = _crafted(attack, net, test, threat)
            broken[how].append(_broken(net, test, points)[right])
            alike = [_alike(net, substitute.eval(), images) for images in (test.floats(), points)]
            cells += [f"{_note(attack)['forwards']:,}", _percent(broken[how][-1]), *(f"{100 * x:.1f}" for x in alike)]
            if how == "static":
                spec = {"name": "pgd", "steps": 40}
                pgd = guard.craft(spec, substitute, test.floats(), test.labels, threat, drop=False)
                broken["pgd"].append(_broken(net, test, pgd)[right])
            print(f"(seed {seed}, {how}: {cells[-3]} in {seconds:.0f} s)", flush=True)
        rows.append([str(seed), *cells, _percent(broken["pgd"][-1])])
    for how in ("static", "dynamic"):
        columns += [f"{how}: queries", "success", "alike, clean", "alike, its points"]
    print(table(["seed", *columns, "PGD-40 from the substitute (static)"], rows))
    each = (torch.stack(broken["dynamic"]).double() - torch.stack(broken["static"]).double()).mean(0) * 100
    mean, half = float(each.mean()), 1.96 * float(each.std()) / math.sqrt(len(each))
    print(f"\ndynamic - static: {mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}] points")


def atn(given: argparse.Namespace) -> None:
    """Towards class 7, over test images of other classes that the network classifies correctly."""
    net, test, rows = trained("mnist"), data("mnist")[: given.images], []
    threat = ThreatModel(norm="l2", epsilon=math.inf)
    logits = _logits(net, test.floats())
    some = test[(correct(logits, test.labels) & (test.labels != 7)).nonzero().squeeze(1)]
    for form in ("aae", "perturbation"):
        for beta in (0.01, 0.005, 0.001):
            spec = {"name": "atn", "beta": beta, "form": form, "images": given.learn}
            attack, seconds = _fitted(spec, net, "mnist", threat, goal={"targets": 7})
            points = _crafted(attack, net, some, threat)
            order = _logits(net, points).argsort(1, descending=True)
            reached, second = order[:, 0] == 7, order[:, 1] == some.labels
            distance = threat.distance(points, some.floats())
            cells = [_percent(reached), _percent(second[reached]), f"{float(distance.mean()):.2f}"]
            rows.append([form, f"{beta}", *cells, f"{seconds:.0f}"])
    print(table(["form", "beta", "success %", "second place kept %", "mean l2", "seconds"], rows))


def uniform(given: argparse.Namespace) -> None:
    """At linf 0.3 on MNIST (C&W and ATN without a bound); images per second while crafting, on one thread, early drop
    off."""
    net, test, rows = trained("mnist"), data("mnist")[: given.images], []
    threat, free = ThreatModel(norm="linf", epsilon=0.3), ThreatModel(norm="l2", epsilon=math.inf)
    contenders: list[tuple[str, Any, ThreatModel]] = [
        ("advgan", {"name": "advgan", "images": given.learn, "epochs": given.epochs}, threat),
        ("atn", {"name": "atn", "images": given.learn}, free),
        ("uap", {"name": "uap"}, threat),
        ("pgd-40", {"name": "pgd", "steps": 40}, threat),
        ("cw", {"name": "cw"}, free),
    ]
    for name, spec, ball in contenders:
        some = test[:200] if name == "cw" else test
        attack = spec
        if name in ("advgan", "atn", "uap"):
            attack, _ = _fitted(spec, net, "mnist", ball)
        best, points = math.inf, some.floats()
        for _ in range(1 if name == "cw" else 3):
            start = time.perf_counter()
            points = _crafted(attack, net, some, ball)
            best = min(best, time.perf_counter() - start)
        success = _success(net, some, points, "untargeted")
        moved = (points - some.floats()).flatten(1)
        alike = float(_likeness(moved))
        length = float(moved.norm(dim=1).mean())
        rows.append([name, f"{len(some) / best:,.3g}", f"{100 * success:.1f}", f"{alike:.3f}", f"{length:.2f}"])
    print(table(["attack", "images/s", "success %", "mean pairwise cosine", "mean l2"], rows))


def _victims() -> Iterable[tuple[str, nn.Module, float]]:
    resnet = published("cifar10_resnet20")
    if resnet is not None:
        yield "cifar10", resnet, 10 / 255
    yield "fashion-mnist", trained("fashion-mnist"), 0.1


def _fitted(
    spec: dict[str, Any], net: nn.Module, dataset: str, threat: ThreatModel, **settings: Any
) -> tuple[LearnedAttack, float]:
    """The attack after it learned, and the seconds that took (also where it was kept from before)."""
    attack = guard.fit(spec, net, dataset, threat=threat, **settings)
    return attack, _note(attack)["seconds"]


def _note(attack: LearnedAttack) -> Any:
    return json.loads(attack.note)


def _crafted(attack: Any, net: nn.Module, some: Data, threat: ThreatModel) -> Tensor:
    return guard.craft(attack, net, some.floats(), some.labels, threat, drop=False)


@torch.no_grad()
def _logits(net: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([net(part) for part in images.split(128)])


def _answers(net: nn.Module, images: Tensor) -> Tensor:
    return _logits(net, images).argmax(1)


def _broken(net: nn.Module, some: Data, points: Tensor) -> Tensor:
    return ~correct(_logits(net, points), some.labels)


def _success(net: nn.Module, some: Data, points: Tensor, goal: str | int) -> float:
    counted = correct(_logits(net, some.floats()), some.labels)
    if isinstance(goal, str):
        return float(_broken(net, some, points)[counted].double().mean())
    counted &= some.labels != goal
    return float((_answers(net, points) == goal)[counted].double().mean())


def _signs(images: Tensor, epsilon: float) -> Tensor:
    """The images with one perturbation of random signs."""
    signs = torch.randint(0, 2, images.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (images + epsilon * signs).clamp(0, 1)


def _fooled(net: nn.Module, images: Tensor, plain: Tensor, threat: ThreatModel, points: Tensor) -> tuple[str, str]:
    assert threat.contains(points, images).all()
    length = float((points - images).flatten(1).norm(dim=1).mean())
    return f"{100 * float((_answers(net, points) != plain).double().mean()):.1f}", f"{length:.2f}"


def _alike(net: nn.Module, other: nn.Module, images: Tensor) -> float:
    return float((_answers(net, images) == _answers(other, images)).double().mean())


def _likeness(moved: Tensor) -> Tensor:
    """The mean cosine of two different rows; rows that are 0 are left out."""
    rows = moved[moved.norm(dim=1) > 0]
    unit = rows / rows.norm(dim=1, keepdim=True)
    count = len(unit)
    return (unit.sum(0).square().sum() - count) / (count * (count - 1))


def _percent(flags: Tensor) -> str:
    return f"{100 * float(flags.double().mean()):.1f}"


def main() -> None:
    """Print one table."""
    tables: dict[str, Callable[[argparse.Namespace], None]] = {
        "uap": uap, "advgan": advgan, "black-box": black_box, "atn": atn, "uniform": uniform,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tables)
    parser.add_argument("--images", type=int, default=2000, help="test images that are judged on")
    parser.add_argument("--learn", type=int, default=10000, help="training images that AdvGAN and ATN learn on")
    parser.add_argument("--epochs", type=int, default=10, help="of AdvGAN")
    parser.add_argument("--queries", type=int, default=6000, help="of a black box")
    parser.add_argument("--answers", choices=("logits", "labels"), default="logits", help="of a black box")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{heading()}\n", flush=True)
    tables[given.what](given)


if __name__ == "__main__":
    main()
