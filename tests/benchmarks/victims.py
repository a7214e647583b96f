"""The classifiers that are attacked: published ones, and two that are trained here once and kept."""

import csv
import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import platformdirs
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from guard import Data, Progress, Registry, Split, Stack, ThreatModel
from guard.evaluation.network import Network
from guard.recipe import Training
from guard.training.fabric import fabric
from guard.training.loop import train

REGISTRY = Registry.load()


@dataclass(frozen=True)
class Victim:
    """A classifier, the first test images of its data set, and how hard it is attacked."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    epsilon: float | None
    """Radius in linf; None where it is to be chosen so that PGD leaves about 60 %."""
    steps: int = 40

    @property
    def batch_size(self) -> int:
        """What guard finds best for the model; everybody gets it."""
        return Network(self.model).batch_size(self.images)


def published(name: str) -> nn.Module | None:
    """A model of the file that GUARD_VICTIMS names; None where that is unset."""
    module = published_module()
    return None if module is None else getattr(module, name)()


def published_module() -> ModuleType | None:
    """The file that GUARD_VICTIMS names, as a module."""
    path = os.environ.get("GUARD_VICTIMS")
    if not path:
        return None
    spec = importlib.util.spec_from_file_location("published_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data(dataset: str, split: Split = "test") -> Data:
    """From GUARD_DATA."""
    found: Data = REGISTRY.create("dataset", dataset).load(split)
    return found


def photographs(count: int) -> tuple[Tensor, Tensor]:
    """The first NIPS-2017 images, (count, 3, 299, 299) in [0, 1], and their classes; they lie beside GUARD_VICTIMS."""
    from PIL import Image

    folder = Path(os.environ["GUARD_VICTIMS"]).parent / "nips17"
    with open(folder / "images.csv") as file:
        labels = {row["ImageId"]: int(row["TrueLabel"]) for row in csv.DictReader(file)}
    files = sorted(folder.glob("*.png"))[:count]
    images = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    return images / 255, torch.tensor([labels[file.stem] for file in files])


def correct(model: nn.Module, dataset: str, count: int) -> tuple[Tensor, Tensor]:
    """The first test images that a model classifies correctly: a share of them is the same for every victim."""
    test = data(dataset)[: 4 * count]
    images, labels = test.floats(), test.labels
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(1) for part in images.split(64)])
    rows = (predicted == labels).nonzero().squeeze(1)[:count]
    return images[rows], labels[rows]


def undefended_cnn() -> nn.Module:
    """small-cnn, trained on clean MNIST."""
    return _trained(
        "small-cnn", "mnist", "none", 6000, Training(epochs=3, lr=0.05), ThreatModel(norm="linf", epsilon=1)
    )


def robust_resnet() -> nn.Module:
    """resnet18-cifar, trained on a part of CIFAR-10 against one large step. No good classifier, but a robust one."""
    against = {"name": "pgd", "steps": 1, "step_size": "5/255"}
    return _trained(
        "resnet18-cifar",
        "cifar10",
        {"name": "adversarial-training", "attack": against},
        6000,
        Training(epochs=3, batch_size=64, lr=0.05),
        ThreatModel(norm="linf", epsilon=4 / 255),
    )


class _Lines(Progress):
    """A line now and then."""

    def __init__(self) -> None:
        self._next = time.monotonic()

    def advance(self, units: int, what: str = "") -> None:
        if time.monotonic() > self._next:
            self._next = time.monotonic() + 60
            print(f"({what})", flush=True)


def _trained(
    name: str, dataset: str, defense: object, images: int, training: Training, threat: ThreatModel
) -> nn.Module:
    source = REGISTRY.create("dataset", dataset)
    torch.manual_seed(0)
    model: nn.Module = REGISTRY.create("model", name).build(source.num_classes, source.image_shape)
    path = Path(platformdirs.user_cache_dir("guard")) / "benchmarks" / f"{name}-{images}-{training.epochs}.safetensors"
    if path.exists():
        load_model(model, path)
    else:
        stack = Stack(members=(REGISTRY.create("defense", defense),))
        train(
            model, stack, data(dataset, "train")[:images], threat, training,
            num_classes=source.num_classes, seed=0, fabric=fabric(training, torch.device("cpu")), progress=_Lines(),
            what=f"training {name} on {images} images of {dataset}, once",
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, str(path))
    return model.eval().requires_grad_(False)


CHOICES: dict[str, Callable[[], tuple[nn.Module | None, str, float | None, int]]] = {
    "mnist_cnn_a_adv": lambda: (published("mnist_cnn_a_adv"), "mnist", None, 40),
    "cifar10_resnet20": lambda: (published("cifar10_resnet20"), "cifar10", 8 / 255, 40),
    "small-cnn": lambda: (undefended_cnn(), "mnist", 0.3, 40),
    "resnet18-cifar": lambda: (robust_resnet(), "cifar10", None, 10),
}


def victim(name: str, images: int) -> Victim | None:
    """The victim of that name; None, and a line that says why, where GUARD_VICTIMS is needed and unset."""
    model, dataset, epsilon, steps = CHOICES[name]()
    if model is None:
        print(f"{name}: left out, GUARD_VICTIMS is unset")
        return None
    return Victim(name, model, *correct(model, dataset, images), epsilon, steps)
