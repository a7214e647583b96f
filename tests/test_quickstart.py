"""The README's first command: it ends in a matrix that says something, and a second run computes nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
INPUT_DEFENSES = {"gaussian-blur", "median", "bit-depth"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """results.json of two runs of the quickstart on one cache."""
    folder = tmp_path_factory.mktemp("quickstart")
    results = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "guard", "evaluate", "configs/quickstart.yaml", "--out", str(folder / name)]
        environment = os.environ | {"GUARD_CACHE": str(folder / "cache")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (folder / name / "report.html").stat().st_size > 50_000
        results.append(json.loads((folder / name / "results.json").read_text()))
    yield results


def worst(results: dict[str, Any], defense: str, knowledge: str = "adaptive") -> float:
    (row,) = [r for r in results["worst_case"] if (r["defense"], r["knowledge"]) == (defense, knowledge)]
    assert row["status"] == "VALID"
    return float(row["robust_accuracy"])


def test_the_matrix_says_something(runs: list[dict[str, Any]]) -> None:
    results = runs[0]
    cells = results["cells"]
    assert not [cell for cell in cells if cell["status"] not in ("VALID", "NOT_APPLICABLE")]
    assert len({cell["label"] for cell in cells}) >= 5
    assert len({cell["defense"] for cell in cells}) >= 5
    assert worst(results, "none") <= 0.05
    assert worst(results, "adversarial-training") >= worst(results, "none") + 0.4
    gaps = {name: worst(results, name, "oblivious") - worst(results, name) for name in INPUT_DEFENSES}
    assert max(gaps.values()) >= 0.2, gaps
    assert min(gaps.values()) >= 0, gaps


def test_a_worst_case_is_at_most_each_of_its_cells(runs: list[dict[str, Any]]) -> None:
    for row in runs[0]["worst_case"]:
        own = [c for c in runs[0]["cells"] if (c["defense"], c["knowledge"]) == (row["defense"], row["knowledge"])]
        valid = [c["robust_accuracy"] for c in own if c["status"] == "VALID"]
        assert row["robust_accuracy"] <= min(valid)
        assert sum(row["broken_first"].values()) == round(
            (row["clean_accuracy"] - row["robust_accuracy"]) * row["images"]
        )


def test_a_second_run_computes_nothing(runs: list[dict[str, Any]]) -> None:
    first, second = runs
    assert first["run"]["computed_shards"] > 0
    assert second["run"]["computed_shards"] == 0
    assert second["cells"] == first["cells"]
    assert second["worst_case"] == first["worst_case"]
