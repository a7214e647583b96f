"""All of them in the training loop, which knows none of them."""

from pathlib import Path

import pytest

import guard

SHORT = {"name": "kl-pgd", "steps": 2}
SOURCE = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
"""


def test_each_trains_a_network_that_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs on digits; chance is 10 %."""
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path))
    (tmp_path / "source.py").write_text(SOURCE)
    source = f"{tmp_path}/source.py:net"
    defenses = [
        {"name": "trades", "attack": SHORT},
        {"name": "mart", "attack": "fgsm"},
        "fgsm-rs",
        "n-fgsm",
        "gradalign",
        {"name": "free", "replays": 2},
        {"name": "ensemble-adversarial-training", "sources": [source]},
        "gaussian-augmentation",
        [{"name": "trades", "attack": SHORT}, "awp"],
        [{"name": "gaussian-augmentation", "sigma": 0.05}, {"name": "awp", "gamma": 0.002}, "fgsm-rs"],
    ]
    report = guard.evaluate(
        {"name": source, "weights": "none"},
        "digits",
        attacks=["fgsm"],
        defenses=defenses,
        threat=guard.ThreatModel(norm="linf", epsilon=0.05),
        training={"epochs": 2, "batch_size": 32, "lr": 0.1},
        limit=100,
    )
    assert {cell.defense: cell.status for cell in report.cells if cell.status != "VALID"} == {}
    assert len(report.cells) == 10
    assert {cell.defense: cell.clean_accuracy for cell in report.cells if cell.clean_accuracy < 0.3} == {}
