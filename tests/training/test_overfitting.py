"""Catastrophic overfitting for real: provoked, seen within an epoch, and not seen where there is none."""

from typing import Any

import pytest
import torch

from guard import Registry, ThreatModel
from guard.building import built
from guard.defense import stack
from guard.progress import Progress
from guard.recipe import Training
from guard.training.course import Course
from guard.training.fabric import fabric
from guard.training.loop import train


def fit(registry: Registry, model: str, defense: Any, epsilon: float, **settings: Any) -> Course:
    digits = registry.create("dataset", "digits")
    training = Training.model_validate(settings)
    return train(
        built(registry.create("model", model), digits, 0),
        stack(registry.create("defense", defense)),
        digits.load("train"),
        ThreatModel(norm="linf", epsilon=epsilon),
        training,
        num_classes=10,
        seed=0,
        fabric=fabric(training, torch.device("cpu")),
        progress=Progress(),
        what="training it",
    )


ONE_STEP = {"name": "adversarial-training", "attack": "fgsm"}
LONG = {"batch_size": 32, "optimizer": "adamw", "lr": 0.005, "weight_decay": 0, "epochs": 40}


def test_one_step_without_a_draw_overfits_and_is_stopped_within_an_epoch(registry: Registry) -> None:
    """Of half the range. It has happened where the network keeps most images under one step and none under ten."""
    whole = fit(registry, "strided-cnn", ONE_STEP, 0.5, **LONG | {"overfitting": "ignore", "epochs": 16})
    happened = [
        epoch.epoch
        for epoch in whole.epochs
        if epoch.fgsm is not None and epoch.clean is not None and epoch.pgd is not None
        if epoch.fgsm > 0.3 and epoch.fgsm > 0.7 * epoch.clean and epoch.pgd < 0.02
    ]
    assert happened, "it overfits"
    stopped = fit(registry, "strided-cnn", ONE_STEP, 0.5, **LONG | {"epochs": 16})
    assert stopped.stopped
    assert len(stopped.epochs) <= happened[0] + 1
    assert "catastrophic overfitting" in stopped.epochs[-1].events[0]


@pytest.mark.parametrize(
    "defense", ["fgsm-rs", {"name": "adversarial-training", "attack": {"name": "pgd", "steps": 3}}]
)
def test_a_healthy_training_raises_no_alarm(defense: Any, registry: Registry) -> None:
    course = fit(registry, "small-cnn", defense, 0.2, epochs=15, batch_size=64, lr=0.1)
    assert not course.stopped
    assert len(course.epochs) == 15
    last = course.epochs[-1]
    assert last.pgd is not None
    assert last.pgd > 0.35
    assert not any(epoch.events for epoch in course.epochs)
