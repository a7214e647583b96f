"""Defenses that learn inside an evaluation: where they may not, how they fail, and one of a third party."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Generator, Tensor, nn

import guard
from guard import InputError, LearnedDefense, Progress, Report, Rng, Step, ThreatModel

LINF = ThreatModel(norm="linf", epsilon=0.02)
PLUGIN = '''
import torch
from torch import nn
from guard import LearnedDefense, hookimpl

class Mean(LearnedDefense):
    """Learns the mean image, and draws all images to it."""
    name = "mean"
    against = False
    def unfitted(self, num_classes, image_shape):
        module = nn.Module()
        module.mean = nn.Parameter(torch.zeros(image_shape))
        return module
    def objective(self, step, model):
        return (step.model.mean - step.images).square().mean()
    def seen(self, module, model, images, labels, threat, generator):
        return {"nearness": -(module.mean - images).square().flatten(1).mean(1)}
    def preprocess(self, images, rng):
        return (images + self.module.mean) / 2

@hookimpl
def guard_defenses():
    return [Mean]
'''


class Gray(LearnedDefense):
    """Learns a shade under which the model answers noisy images as others. Or it fails at that."""

    name = "gray"
    epochs: int = 2
    batch_size: int = 32
    how: str = "well"

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        module = nn.Conv2d(1, 1, 1)
        with torch.no_grad():
            module.weight.fill_(1.0)
            module.bias.mul_(0.1)  # type: ignore[union-attr]
        return module

    def objective(self, step: Step, model: nn.Module) -> Tensor:
        if self.how == "crash" and step.epoch == 1:
            raise ValueError("no luck")
        noise = 0.1 * torch.randn(step.images.shape, generator=step.generator).to(step.images)
        factor = float("nan") if self.how == "nan" and step.epoch == 1 else 1.0
        return factor * (model(step.model(step.images + noise)) - model(step.images)).square().mean()

    def seen(
        self,
        module: nn.Module,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        generator: Generator,
    ) -> dict[str, Tensor]:
        return {"kept": model(module(images)).argmax(1) == model(images).argmax(1)}

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        restored: Tensor = self.module(images)
        return restored.clamp(0, 1)


class Heard(Progress):
    """What was learned."""

    def __init__(self) -> None:
        self.learned: list[str] = []

    def start(self, what: str, total: int) -> None:
        if "learning" in what:
            self.learned.append(what)


def evaluate(model: Any, images: Tensor, labels: Tensor, heard: Progress | None = None, **settings: Any) -> Report:
    """On the first 100 images; the others may be learned on."""
    keys: dict[str, Any] = {"attacks": ["fgsm"], "threat": LINF, "train_data": (images[100:], labels[100:])}
    keys |= {"defenses": [Gray()], "progress": heard}
    return guard.evaluate(model, (images[:100], labels[:100]), **(keys | settings))


def weights(cache: Path) -> list[dict[str, Tensor]]:
    return [safetensors.torch.load(file.read_bytes()) for file in sorted((cache / "weights").glob("*.safetensors"))]


def test_learning_may_be_forbidden_and_needs_images(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(linear, images, labels, no_train=True)
    assert str(caught.value) == (
        "defense 'gray' must learn, and --no-train forbids it. Give weights, or allow training"
    )
    with pytest.raises(InputError) as caught:
        evaluate(linear, images, labels, train_data=None)
    assert str(caught.value) == "defense 'gray' needs training images. Give train_data=(images, labels)"


def test_left_of_what_trains_it_is_refused(images: Tensor, labels: Tensor) -> None:
    """There is no network yet that it could stand in front of; to the right of it there is."""
    images = nn.functional.interpolate(images, (8, 8))
    settings: dict[str, Any] = {"training": {"epochs": 1, "batch_size": 50}, "attacks": ["noise"]}
    trained = {"name": "adversarial-training", "attack": "fgsm"}
    with pytest.raises(InputError) as caught:
        evaluate("small-cnn", images, labels, defenses=[[Gray(), trained]], **settings)
    assert str(caught.value) == (
        "defense 'gray' learns in front of a trained network, and stands left of 'adversarial-training', "
        "which trains it. Write it to the right"
    )
    heard = Heard()
    report = evaluate("small-cnn", images, labels, heard, defenses=[[trained, Gray()]], **settings)
    assert report.cells[0].robust_accuracy is not None
    assert heard.learned == ["defense 'gray' learning in front of small-cnn + adversarial-training + gray"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            "crash",
            "defense 'gray' learning in front of Linear + gray raised ValueError: no luck (test_stages_failing.py:",
        ),
        ("nan", "defense 'gray' learning in front of Linear + gray: the loss became nan in epoch 2 of 2. "),
    ],
)
def test_a_defense_that_fails_at_learning_is_invalid_and_the_others_go_on(
    how: str, reason: str, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    failed, other = evaluate(linear, images, labels, defenses=[Gray(how=how), "none"]).cells
    assert (failed.status, other.status) == ("INVALID", "VALID")
    assert failed.reason.startswith(reason)
    assert "\n" not in failed.reason
    assert failed.robust_accuracy is None


def test_in_front_of_a_model_that_gives_no_gradient_nothing_is_learned_in_silence(
    linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    class Blind(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = linear(images)
            return logits

    (cell,) = evaluate(Blind(), images, labels, attacks=["noise"]).cells
    assert cell.status == "INVALID"
    assert cell.reason.startswith("defense 'gray' learning in front of Blind + gray")
    assert "\n" not in cell.reason


def test_a_third_partys_defense_learns(images: Tensor, labels: Tensor, linear: nn.Module, tmp_path: Path) -> None:
    """Four methods in a file; its report has the cells of all knowledge."""
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    defense = {"name": "mean", "epochs": 30, "lr": 0.05, "batch_size": 60}
    report = evaluate(linear, images, labels, defenses=[defense], plugins=[file], knowledge=["adaptive", "oblivious"])
    assert [cell.status for cell in report.cells] == ["VALID", "VALID"]
    (kept,) = weights(tmp_path / "cache")
    torch.testing.assert_close(kept["mean"], images[100:].mean(0), atol=0.02, rtol=0)
