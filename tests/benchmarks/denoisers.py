"""What denoisers that learn are worth: how much noise they remove, and how much accuracy they restore.

    GUARD_DATA=... GUARD_VICTIMS=.../published_models.py python -m tests.benchmarks.denoisers WHAT

psnr        decibels that Gaussian noise of 25/255 loses on CIFAR-10, in color and in grey, beside a blur and a
            published DnCNN
hgd         accuracy of a published CIFAR-10 network behind each, clean and under PGD at 4/255 and 8/255, whose attacker
            knows nothing of the denoiser, or all of it

All learn on training images and are judged on test images, on one thread.
"""

import argparse
import time
from collections.abc import Callable, Iterable

import torch
from guard_plugins.defenses.denoising import GaussianBlur
from guard_plugins.defenses.hgd import Hgd
from guard_plugins.defenses.learned_denoiser import LearnedDenoiser
from torch import Tensor, nn

import guard
from guard import Data, Defense, Progress, Rng, ThreatModel
from guard.rng import seeded
from guard.training.fabric import fabric
from guard.training.lesson import Preparing
from guard.training.loop import train
from tests.benchmarks.measure import heading, table
from tests.benchmarks.victims import data, published

SIGMA = 25 / 255
DEFENSES = {
    "none": "none",
    "gaussian-blur": GaussianBlur(sigma=0.7),
    "learned-denoiser": LearnedDenoiser(),
    "hgd": Hgd(),
}
"""What `hgd` compares; the blur is the best of `psnr`."""
Denoise = Callable[[Tensor], Tensor]


def psnr(given: argparse.Namespace) -> None:
    """Means over test images of PSNR in dB; the blur is the best of nine on training images."""
    rows = []
    for name, seen_as in (("color", _color), ("grey", _grey)):
        training, test = data("cifar10", "train"), seen_as(data("cifar10")[: given.images].floats())
        for title, denoise, seconds in _denoisers(name, seen_as, training, given):
            cells = []
            for clamped in (False, True):
                noisy = _noisy(test, seed=100)
                noisy = noisy.clamp(0, 1) if clamped else noisy
                before, after = _psnr(noisy, test), _psnr(_denoised(denoise, noisy), test)
                cells += [f"{before:.2f}", f"{after:.2f}", f"{after - before:.2f}"]
            rows.append([name, title, *cells, seconds])
            print(f"({rows[-1]})", flush=True)
    columns = ["noisy", "denoised", "gained", "clamped", "denoised", "gained"]
    print(table(["images", "denoiser", *columns, "seconds"], rows))


def hgd(given: argparse.Namespace) -> None:
    """Robust accuracy in % of all images; HGD learns at the larger epsilon. Restored is the share of what the attack
    takes from the bare network that the denoiser gives back."""
    net = published("cifar10_resnet20")
    assert net is not None, "set GUARD_VICTIMS"
    found: dict[tuple[str, str, float], float] = {}
    rows = []
    for name, defense in DEFENSES.items():
        clock = _Clock()
        report = guard.evaluate(
            net, "cifar10", attacks=[{"name": "pgd", "steps": 20}], defenses=[defense], seed=given.seed,
            threat=[{"norm": "linf", "epsilon": "8/255"}, {"norm": "linf", "epsilon": "4/255"}],
            knowledge=["adaptive"] if name == "none" else ["adaptive", "oblivious"], limit=given.images, progress=clock,
        )  # fmt: skip
        for cell in report.cells:
            assert cell.robust_accuracy is not None
            assert cell.epsilon is not None
            found[name, cell.knowledge, round(255 * cell.epsilon)] = cell.robust_accuracy
        clean = found[name, "clean", 0] = report.cells[0].clean_accuracy or 0.0
        cells = [f"{100 * clean:.1f}"]
        for epsilon in (4, 8):
            bare = found["none", "adaptive", epsilon]
            oblivious = found.get((name, "oblivious", epsilon), bare)
            restored = (oblivious - bare) / (found["none", "clean", 0] - bare)
            shares = [oblivious, restored, found[name, "adaptive", epsilon]]
            cells += [f"{100 * share:.1f}" for share in shares]
        rows.append([name, *cells, f"{clock.seconds:.0f}"])
        print(f"({rows[-1]})", flush=True)
    columns = [f"{what} {epsilon}/255" for epsilon in (4, 8) for what in ("oblivious", "restored %", "adaptive")]
    print(table(["denoiser", "clean", *columns, "seconds to learn"], rows))


class _Clock(Progress):
    """How long all that learned took together; nothing, where it was kept from before."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0
        self._learning = False

    def start(self, what: str, total: int) -> None:
        """Note the time."""
        self._learning, self._began = "learning" in what, time.perf_counter()

    def finish(self) -> None:
        """Note how long it took."""
        self.seconds += (time.perf_counter() - self._began) * self._learning
        self._learning = False


def _denoisers(
    name: str, seen_as: Denoise, training: Data, given: argparse.Namespace
) -> Iterable[tuple[str, Denoise, str]]:
    some = seen_as(training[-500:].floats())
    blurs = [GaussianBlur(sigma=size / 10) for size in range(3, 12)]
    best = max(blurs, key=lambda blur: _psnr(blur.preprocess(_noisy(some, seed=101), _rng(some)), some))
    yield f"gaussian-blur {best.sigma}", _applied(best), ""
    for seed in range(given.seed, given.seed + given.seeds):
        defense, start = LearnedDenoiser(), time.perf_counter()
        learned = _taught(defense, training[: defense.images], seen_as, seed)
        seconds = f"{time.perf_counter() - start:.0f}"
        yield f"learned-denoiser, seed {seed}", _applied(learned), seconds
    dncnn = published("dncnn_gray_25") if name == "grey" else None
    if dncnn is not None:
        yield "DnCNN-17, published", lambda images: dncnn(images).clamp(0, 1), ""


def _taught(defense: LearnedDenoiser, some: Data, seen_as: Denoise, seed: int) -> LearnedDenoiser:
    images, threat, recipe = seen_as(some.floats()), ThreatModel(norm="linf", epsilon=1), defense.training()
    with seeded(seed, torch.device("cpu")):
        module = defense.unfitted(10, (images.shape[1], images.shape[2], images.shape[3]))
    lesson = Preparing(defense, nn.Identity(), threat, seed, torch.float32)
    train(
        module, lesson, Data.of(images, some.labels), threat, recipe, num_classes=10, seed=seed, progress=Progress(),
        fabric=fabric(recipe, torch.device("cpu")), what="learning", judge=lesson.judge,
    )  # fmt: skip
    return defense.fitted(module)


def _applied(defense: Defense) -> Denoise:
    return lambda images: defense.preprocess(images, _rng(images))


def _color(images: Tensor) -> Tensor:
    return images


def _grey(images: Tensor) -> Tensor:
    """The luminance, as ITU-R BT.601 weighs colors."""
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def _noisy(images: Tensor, seed: int) -> Tensor:
    return images + SIGMA * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def _denoised(denoise: Denoise, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([denoise(part) for part in images.split(100)])


def _psnr(images: Tensor, clean: Tensor) -> float:
    return float(-10 * (images - clean).double().square().mean((1, 2, 3)).log10().mean())


def _rng(images: Tensor) -> Rng:
    return Rng(0, torch.arange(len(images)), tuple(images.shape[1:]))


def main() -> None:
    """Print one table."""
    tables: dict[str, Callable[[argparse.Namespace], None]] = {"psnr": psnr, "hgd": hgd}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tables)
    parser.add_argument("--images", type=int, default=500, help="test images that are judged on")
    parser.add_argument("--seed", type=int, default=0, help="of what is learned, and of the attacks")
    parser.add_argument("--seeds", type=int, default=1, help="how many learn, of psnr")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{heading()}\n", flush=True)
    tables[given.what](given)


if __name__ == "__main__":
    main()
