"""Low-frequency attacks over bands and dimensions, in both readings of the budget.

    GUARD_DATA=... GUARD_VICTIMS=.../published_models.py python -m tests.benchmarks.low_frequency [VICTIM ...]
        [--behind DEFENSE ...] [--images N]

The first test images or NIPS-2017 photographs, clean errors counted as broken; the attack is bim in 10 steps, seed 0.
"image": the image is bounded, and what share of a perturbation's energy clipping lets out of its band, on average.
"parameter": the free perturbation is bounded; then the largest linf distance that an image attains, and what plain bim
leaves at that.
"""

import argparse
from collections.abc import Callable

import torch
from guard_plugins.attacks.bands import Band, mask
from guard_plugins.attacks.gradient_sign import BIM
from guard_plugins.attacks.low_frequency import LowFrequency
from torch import Tensor, nn

from guard import Attack, Defense, Goal, Rng, ThreatModel, dct2
from guard.evaluation.crafting import craft
from guard.evaluation.network import ATTACK, SCORING, Network
from guard.goal import correct
from tests.benchmarks.measure import heading, table
from tests.benchmarks.victims import REGISTRY, data, photographs, published, undefended_cnn

BANDS: tuple[Band, ...] = ("low", "mid", "high", "random")
SCENES: dict[str, tuple[Callable[[], nn.Module | None], str, tuple[float, ...]]] = {
    "small-cnn": (undefended_cnn, "mnist", (0.1, 0.3)),
    "mnist_cnn_a_adv": (lambda: published("mnist_cnn_a_adv"), "mnist", (0.3,)),
    "cifar10_resnet20": (lambda: published("cifar10_resnet20"), "cifar10", (2 / 255, 8 / 255)),
    "cifar10_cnn_a_adv": (lambda: published("cifar10_cnn_a_adv"), "cifar10", (2 / 255, 8 / 255)),
    "cifar10_resnet4b": (lambda: published("cifar10_resnet4b"), "cifar10", (2 / 255,)),
    "imagenet_mobilenet_v2": (lambda: published("imagenet_mobilenet_v2"), "nips17", (4 / 255, 16 / 255)),
    "imagenet_mobilenet_v1_075": (lambda: published("imagenet_mobilenet_v1_075"), "nips17", (4 / 255, 16 / 255)),
}
"""Model, data set and epsilons; undefended, but for those named adv and resnet4b, which were trained adversarially."""
DIMENSIONS = {"mnist": (7, 14, 21), "cifar10": (4, 8, 16), "nips17": (75,)}


class Scene:
    """A victim behind a defense, through which the attack goes too, and its images."""

    def __init__(self, model: nn.Module, defense: Defense, images: Tensor, labels: Tensor) -> None:
        self.network, self.images, self.labels = Network(model, (defense,)), images, labels

    def correct(self, images: Tensor, rows: Tensor) -> Tensor:
        """Whether it is right about each of them; `rows`: which they are."""
        rng = Rng(0, rows, tuple(images.shape[1:]), SCORING)
        return correct(self.network.logits(images, rng), self.labels[rows])

    def attacked(self, attack: Attack, epsilon: float) -> tuple[float, Tensor]:
        """Robust accuracy, and the adversarial images."""
        threat, stand, found = ThreatModel(norm="linf", epsilon=epsilon), 0, []
        for rows in torch.arange(len(self.images)).split(self.network.batch_size(self.images)):
            crafted = craft(
                attack, self.network, self.images[rows], Goal(self.labels[rows]), threat,
                index=rows, seed=0, drop=True, who=attack.name,
            )  # fmt: skip
            found.append(crafted.adversarial)
            stand += int(self.correct(found[-1], rows).sum())
        return stand / len(self.images), torch.cat(found)

    def outside(self, adversarial: Tensor, band: Band, side: int) -> float:
        """The mean share of a perturbation's energy outside its band."""
        rng = Rng(0, torch.arange(len(self.images)), tuple(self.images.shape[1:]), ATTACK)
        energy = dct2(adversarial - self.images).square()
        left = energy * (1 - mask(band, side, self.images, rng))
        moved = energy.sum((1, 2, 3)) > 0
        return float((left.sum((1, 2, 3))[moved] / energy.sum((1, 2, 3))[moved]).mean())


def row(scene: Scene, band: Band, side: int, epsilon: float) -> list[str]:
    """One band of one size in both readings."""
    image, adversarial = scene.attacked(LowFrequency(band=band, dimension=side), epsilon)
    outside = scene.outside(adversarial, band, side)
    free = LowFrequency(band=band, dimension=side, parameter_epsilon=epsilon)
    parameter, adversarial = scene.attacked(free, 1)
    attained = float((adversarial - scene.images).abs().max())
    plain, _ = scene.attacked(BIM(), attained)
    percent = [f"{100 * share:.1f}" for share in (image, outside, parameter, plain)]
    return [f"{side} {band}", *percent[:3], f"{attained:.3f} ({attained / epsilon:.1f} x)", percent[3]]


def main() -> None:
    """Print a table for each victim and epsilon."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("victims", nargs="*", default=tuple(SCENES), metavar="VICTIM", help=", ".join(SCENES))
    parser.add_argument("--behind", nargs="*", default=["none"], metavar="DEFENSE", help="each alone, in front")
    parser.add_argument("--images", type=int, default=500, help="of each victim")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(heading())
    for name in arguments.victims:
        make, dataset, epsilons = SCENES[name]
        model = make()
        if model is None:
            print(f"{name}: left out, GUARD_VICTIMS is unset")
            continue
        images, labels = first(dataset, arguments.images)
        for defense in arguments.behind:
            scene = Scene(model, REGISTRY.create("defense", defense), images, labels)
            every = torch.arange(len(images))
            clean = torch.cat([scene.correct(images[rows], rows) for rows in every.split(64)]).float().mean().item()
            for epsilon in epsilons:
                plain, _ = scene.attacked(BIM(), epsilon)
                rows = [row(scene, band, side, epsilon) for side in DIMENSIONS[dataset] for band in BANDS]
                print(f"\n{name} behind {defense}, linf {epsilon:.4g}, {len(images)} images, ", end="")
                print(f"clean {100 * clean:.1f}, bim {100 * plain:.1f}\n")
                columns = ["n band", "image: robust %", "outside %", "parameter: robust %", "attained", "bim there: %"]
                print(table(columns, rows), flush=True)


def first(dataset: str, count: int) -> tuple[Tensor, Tensor]:
    """Test images and their labels."""
    if dataset == "nips17":
        return photographs(count)
    test = data(dataset)[:count]
    return test.floats(), test.labels


if __name__ == "__main__":
    main()
