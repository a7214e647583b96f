"""The evaluator: which data it takes, and how it refuses the others."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import guard
from guard import Defense, InputError, Report, ThreatModel
from guard.evaluation.result import Cell

LINF = ThreatModel(norm="linf", epsilon=0.02)
NONE = [guard.Stack()]


def only(report: Report) -> Cell:
    assert len(report.cells) == 1
    return report.cells[0]


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    keys = {"attacks": [{"name": "pgd", "steps": 20}], "threat": LINF, "defenses": NONE} | settings
    return guard.evaluate(model, data, **keys)


def test_a_dataloader_keeps_its_last_partial_batch(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    loader = DataLoader(TensorDataset(images, labels), batch_size=64)
    direct, loaded, dataset = (
        only(evaluate(linear, data)).model_copy(update={"key": "", "seconds": 0})
        for data in ((images, labels), loader, TensorDataset(images, labels))
    )
    assert direct == loaded == dataset
    with pytest.raises(InputError) as caught:
        evaluate(linear, DataLoader(TensorDataset(images, labels), shuffle=True))
    assert str(caught.value) == "the DataLoader shuffles, and an image is known by its place. Give shuffle=False"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, y: ((x * 255).byte(), y), "images are uint8. Give images.float() / 255"),
        (lambda x, y: (x * 255, y), "images reach from 76.5 to 178. Give images / 255"),
        (
            lambda x, y: ((x - 0.5) / 0.1, y),
            "images reach from -2 to 2: they look normalised. "
            "Give guard.model(net, mean=..., std=...) and images in [0, 1].",
        ),
        (lambda x, y: (x, y[:-1]), "there are 300 images and 299 labels. Give one label per image"),
        (
            lambda x, y: (x, y + 1),
            "labels reach from 1 to 2; there are 2 classes, 0 to 1. Give labels that count from 0",
        ),
        (lambda x, y: (x, y.float()), "labels are float32 of shape (300,). Give int64 labels of shape (N,)"),
        (lambda x, y: (x[0], y), "images are float32 of shape (1, 4, 4). Give float32 images of shape (N, C, H, W)"),
        (lambda x, y: (x[:0], y[:0]), "there are no images. Give at least one"),
        (lambda x, y: (x / 0 * 0, y), "images hold NaN or infinity. Give finite images in [0, 1]"),
    ],
)
def test_bad_tensors_are_answered_by_one_line(
    change: Callable[[Tensor, Tensor], Any], text: str, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(linear, change(images, labels))
    assert str(caught.value) == text


def test_a_defense_that_calibrates_needs_training_images(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Cap(Defense):
        """Needs images to calibrate on."""

        name = "cap"

        def modify(self, model: nn.Module, calibration: Tensor) -> nn.Module:
            assert len(calibration)
            return model

    with pytest.raises(InputError, match=r"defense 'cap' needs training images\. Give train_data=\(images, labels\)"):
        evaluate(linear, (images, labels), defenses=[Cap()])
    evaluate(linear, (images, labels), defenses=[Cap()], train_data=(images, labels))
