"""What TAP's weights, distance and smoothness are worth: on the network it is crafted on, and on one it never saw.

    GUARD_DATA=... GUARD_VICTIMS=.../published_models.py python -m tests.benchmarks.tap [cifar10 | nips17] [--images N]

Every attack takes 10 steps of epsilon / 10. The first half of the images is there to choose by, the second to judge by:
there each row is compared with BIM and MI-FGSM, image by image, with a 95 % interval of the mean difference. Success is
the share of the images that a network classifies correctly which it no longer does.
"""

import argparse
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import guard
from guard import ThreatModel, dct2
from guard.goal import correct
from tests.benchmarks.measure import heading, table
from tests.benchmarks.victims import data, photographs, published

Spec = dict[str, Any]
ROWS = ["tap", "tap-paper", "tap smoothness_weight=0"]


@dataclass(frozen=True)
class Study:
    """Images, the names of two networks, and how many coefficients a side count as low."""

    images: Tensor
    labels: Tensor
    source: str
    victim: str
    epsilon: float
    low: int


@dataclass(frozen=True)
class Row:
    """What one attack did; NaN where a network was wrong about the clean image."""

    label: str
    source: Tensor
    victim: Tensor
    low: Tensor
    """Share of each perturbation's energy in the lowest coefficients."""


def cifar10(count: int) -> Study:
    """The first test images."""
    test = data("cifar10")[:count]
    return Study(test.floats(), test.labels, "cifar10_resnet20", "cifar10_resnet56", 8 / 255, 8)


def nips17(count: int) -> Study:
    """The first photographs."""
    images, labels = photographs(count)
    return Study(images, labels, "imagenet_mobilenet_v2", "imagenet_mobilenet_v1_075", 16 / 255, 75)


def spec(row: str) -> Spec:
    """An attack's name and its settings: "tap feature_weight=0.05 layers=1.layer2,1.layer3"."""
    name, *settings = row.split()
    given = dict(setting.split("=") for setting in settings)
    return {"name": name} | {key: value.split(",") if key == "layers" else value for key, value in given.items()}


def attacked(study: Study, row: str, nets: list[nn.Module], clean: list[Tensor]) -> Row:
    """Craft on the first network and ask both; `clean`: whether each is right about the images themselves."""
    threat = ThreatModel(norm="linf", epsilon=study.epsilon)
    adversarial = guard.craft(spec(row), nets[0], study.images, study.labels, threat, drop=False)
    energy = dct2(adversarial - study.images).square()
    low = energy[..., : study.low, : study.low].sum((1, 2, 3)) / energy.sum((1, 2, 3)).clamp(min=1e-12)
    broken = [~_correct(net, adversarial, study.labels) for net in nets]
    source, victim = (torch.where(was, now.double(), math.nan) for was, now in zip(clean, broken, strict=True))
    return Row(row, source, victim, low)


@torch.no_grad()
def _correct(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([correct(net(x), y) for x, y in zip(images.split(32), labels.split(32), strict=True)])


def difference(row: Tensor, other: Tensor) -> str:
    """Mean of the per-image differences in points, and its 95 % interval (normal)."""
    each = (row - other)[~row.isnan()] * 100
    mean, half = float(each.mean()), 1.96 * float(each.std()) / math.sqrt(len(each))
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def lines(rows: list[Row], half: int) -> str:
    """The table; the reference rows are the first two."""
    columns = ["attack", "source", "transfer", "low", "source", "transfer", "low"]
    columns += ["source - bim", "transfer - bim", "transfer - mi-fgsm"]
    bim, momentum = rows[:2]
    body = []
    for row in rows:
        cells = [row.label]
        for part in (slice(0, half), slice(half, None)):
            cells += [f"{float(value[part].nanmean()) * 100:.1f}" for value in (row.source, row.victim)]
            cells += [f"{float(row.low[part].mean()):.3f}"]
        judged = [(row.source, bim.source), (row.victim, bim.victim), (row.victim, momentum.victim)]
        body.append(cells + [difference(a[half:], b[half:]) for a, b in judged])
    return table(columns, body)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=("cifar10", "nips17"), default="cifar10")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rows", nargs="*", default=ROWS, help="'bim', 'tap smoothness_weight=0'")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = {"cifar10": cifar10, "nips17": nips17}[given.data](given.images)
    nets = [net for net in (published(study.source), published(study.victim)) if net is not None]
    assert len(nets) == 2, "GUARD_VICTIMS is unset"
    clean = [_correct(net, study.images, study.labels) for net in nets]
    rows: list[Row] = []
    for row in ("bim", "mi-fgsm", *given.rows):
        rows.append(attacked(study, row, nets, clean))
        print(lines([rows[0], rows[min(1, len(rows) - 1)], rows[-1]], len(clean[0]) // 2).splitlines()[-1], flush=True)
    print(f"\n{heading()}")
    print(f"{study.source} to {study.victim}, {len(study.images)} images, linf {study.epsilon * 255:g}/255, seed 0\n")
    print(lines(rows, len(study.images) // 2))


if __name__ == "__main__":
    main()
