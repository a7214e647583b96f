"""The README's first command: it ends in a matrix that says something, and a second run computes nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
INPUT_DEFENSES = {
    "gaussian-blur",
    "bit-depth",
    "adversarial-training + gaussian-blur",
    "adversarial-training + median",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, quickstart_cache: Path) -> list[dict[str, Any]]:
    """results.json of two runs of the quickstart on one cache."""
    folder = tmp_path_factory.mktemp("quickstart")
    results = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "guard", "evaluate", "configs/quickstart.yaml", "--out", str(folder / name)]
        environment = os.environ | {"GUARD_CACHE": str(quickstart_cache)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (folder / name / "report.html").stat().st_size > 50_000
        results.append(json.loads((folder / name / "results.json").read_text()))
    return results


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


def test_the_readme_shows_these_figures(runs: list[dict[str, Any]]) -> None:
    text = (ROOT / "README.md").read_text()
    adaptive = text[text.index("adaptive attacker;") : text.index("oblivious attacker;")]
    for name in ("none", "gaussian-blur", "bit-depth", "truncated-relu", "shape-bias", "adversarial-training"):
        (line,) = [line for line in adaptive.splitlines() if re.match(rf"{name} +\d.*\[", line)][:1]
        shown = [float(part) for part in line.split("[")[0].split()[1:]]
        cells = [c for c in runs[0]["cells"] if (c["defense"], c["knowledge"]) == (name, "adaptive")]
        ours = [cells[0]["clean_accuracy"], *(c["robust_accuracy"] for c in cells), worst(runs[0], name)]
        assert shown == pytest.approx([100 * value for value in ours], abs=8)


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
