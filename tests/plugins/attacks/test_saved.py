"""Saved images: each is found by its index, and files that do not fit are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard import Goal, InputError, Registry, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Perturb = Callable[..., Tensor]


def test_saved_finds_each_image_by_its_index(
    tmp_path: Path,
    make_victim: Make,
    curved: nn.Module,
    images: Tensor,
    goal: Goal,
    perturb: Perturb,
    registry: Registry,
) -> None:
    np.savez(tmp_path / "a.npz", adversarial=images[[5, 1]].numpy() * 0.5, indices=np.array([5, 1]))
    attack = registry.create("attack", {"name": "saved", "path": str(tmp_path / "a.npz")})
    threat = ThreatModel(norm="linf", epsilon=1)
    index = torch.tensor([1, 2, 5])
    victim = make_victim(curved, images[index], index=index, access="transfer")
    result = perturb(attack, victim, images[index], goal[index], threat, index=index)
    assert torch.equal(result, torch.stack([images[1] * 0.5, images[2], images[5] * 0.5]))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"indices": np.arange(2)}, "lacks adversarial. Save adversarial and indices"),
        (
            {"adversarial": np.zeros((2, 3, 4, 4)), "indices": np.arange(3)},
            "holds 2 images and 3 indices. Save one for each",
        ),
        ({"adversarial": np.zeros((2, 1, 4, 4)), "indices": np.arange(2)}, "Save them from the same data set"),
    ],
)
def test_a_saved_file_that_does_not_fit_is_refused(
    arrays: dict[str, Any],
    message: str,
    tmp_path: Path,
    make_victim: Make,
    curved: nn.Module,
    images: Tensor,
    goal: Goal,
    perturb: Perturb,
    registry: Registry,
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    attack = registry.create("attack", {"name": "saved", "path": str(tmp_path / "a.npz")})
    with pytest.raises(InputError, match=message):
        perturb(attack, make_victim(curved, images), images, goal, ThreatModel(norm="linf", epsilon=1))


@pytest.mark.parametrize("content", [b"", b"not numpy", b"PK\x03\x04broken", None])
def test_a_saved_file_that_is_none_is_refused(
    content: bytes | None,
    tmp_path: Path,
    make_victim: Make,
    curved: nn.Module,
    images: Tensor,
    goal: Goal,
    perturb: Perturb,
    registry: Registry,
) -> None:
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    attack = registry.create("attack", {"name": "saved", "path": str(path)})
    with pytest.raises(InputError, match=r"is no \.npz file|finds no file"):
        perturb(attack, make_victim(curved, images), images, goal, ThreatModel(norm="linf", epsilon=1))
