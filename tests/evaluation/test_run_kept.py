"""The evaluator: what it keeps for a second run, and what it computes again."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import guard
from guard import Report, ThreatModel
from guard.evaluation.result import Cell

LINF = ThreatModel(norm="linf", epsilon=0.02)
NONE = [guard.Stack()]


def only(report: Report) -> Cell:
    assert len(report.cells) == 1
    return report.cells[0]


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    keys = {"attacks": [{"name": "pgd", "steps": 20}], "threat": LINF, "defenses": NONE} | settings
    return guard.evaluate(model, data, **keys)


def test_a_second_run_computes_nothing(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    first, second = (evaluate(linear, (images, labels)) for _ in range(2))
    assert first.run["computed_shards"] == 2
    assert first.run["cached_shards"] == 0
    assert (second.run["computed_shards"], second.run["cached_shards"]) == (0, 2)
    assert second.cells == first.cells
    assert second.worst_case == first.worst_case


def test_what_decides_the_result_is_computed_again(linear: Any, images: Tensor, labels: Tensor) -> None:
    evaluate(linear, (images, labels))

    def computed(**settings: Any) -> int:
        return int(evaluate(linear, (images, labels), **settings).run["computed_shards"])

    assert computed(threat=ThreatModel(norm="linf", epsilon=0.021)) == 2
    assert computed(attacks=[{"name": "pgd", "steps": 21}]) == 2
    assert computed(seed=1) == 2
    assert computed(precision="float64") == 2
    assert computed(limit=256) == 0
    assert computed(limit=257) == 1
    assert computed() == 0
    linear.bias += 1e-3
    assert computed() == 2
    other = images.clone()
    other[299, 0, 0, 0] += 1e-3
    assert evaluate(linear, (other, labels)).run["computed_shards"] == 1


def test_a_damaged_shard_is_computed_again(linear: nn.Module, images: Tensor, labels: Tensor, cache: Path) -> None:
    first = evaluate(linear, (images, labels))
    for path in cache.glob("shards/**/*.npz"):
        path.write_bytes(path.read_bytes()[:-40])
    assert evaluate(linear, (images, labels)).cells[0].robust_accuracy == first.cells[0].robust_accuracy


def test_kept_images_are_scored_again_alike(linear: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    first = only(evaluate(linear, (images, labels)))
    kept = only(evaluate(linear, (images, labels), out=tmp_path / "run", keep_images=True))
    assert kept.robust_accuracy == first.robust_accuracy
    path = tmp_path / "run" / "images" / "pgd.npz"
    with np.load(path) as saved:
        assert saved["adversarial"].shape == (300, 1, 4, 4)
        assert saved["adversarial"].dtype == np.float32
        assert (saved["labels"] == labels.numpy()).all()
        assert (saved["indices"] == np.arange(300)).all()
    again = only(evaluate(linear, (images, labels), attacks=[{"name": "saved", "path": str(path)}]))
    assert again.robust_accuracy == first.robust_accuracy
    assert again.forwards_per_image == 0
