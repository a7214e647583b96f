"""Figures of the data at hand: denominators, 8 bits, chance, precision."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import guard
from guard import Report, ThreatModel

LINF = ThreatModel(norm="linf", epsilon=0.02)


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    return guard.evaluate(model, data, **({"attacks": ["fgsm"], "threat": LINF} | settings))


def test_8bit_figures_are_those_of_the_data_at_hand(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    grid = (images * 255).round() / 255
    grid[280] += 0.4 / 255  # in the second shard
    mixed = evaluate(linear, (grid, labels)).cells[0]
    assert mixed.robust_accuracy_8bit is None
    alone = evaluate(linear, (grid, labels), limit=256)
    assert alone.run["computed_shards"] == 0
    cell = alone.cells[0]
    assert cell.robust_accuracy_8bit is not None
    # 0.02 is 5.1 / 255: on the grid the attacker has 5 / 255 only
    smaller = evaluate(linear, (grid, labels), limit=256, threat=ThreatModel(norm="linf", epsilon=5 / 255)).cells[0]
    assert cell.robust_accuracy_8bit == smaller.robust_accuracy
    assert cell.robust_accuracy is not None
    assert cell.robust_accuracy < cell.robust_accuracy_8bit


def test_a_perfect_score_on_three_images_is_no_proof(
    linear: nn.Module, images: Tensor, labels: Tensor, robust: Callable[[ThreatModel], float]
) -> None:
    (cell,) = evaluate(linear, (images[1:4], labels[1:4])).cells
    assert cell.reason.startswith("clean accuracy 100.0% on 3 images is not clearly above chance (50.0%)")


def test_precision_is_full_and_put_back(images: Tensor) -> None:
    from guard.precision import full_precision

    with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
        assert (images[0, 0] @ images[1, 0]).dtype == torch.float32
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision(torch.device("cpu")):
            pass
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
