"""guard claim as a user types it: a claim about a network in a file, and what it leaves."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guard.cli import main
from guard.config import EvaluationConfig
from guard.configfile import read
from guard.errors import InputError

NETWORK = """\
import torch
from sklearn.datasets import load_digits
from torch import nn

class Nearest(nn.Module):
    def __init__(self, centers):
        super().__init__()
        self.register_buffer("centers", centers)

    def forward(self, images):
        return -(images - self.centers).square().sum((2, 3))

def net():
    digits = load_digits()
    means = [digits.images[:1200][digits.target[:1200] == label].mean(0) / 16 for label in range(10)]
    return Nearest(torch.stack([torch.from_numpy(mean).float() for mean in means]))
"""
CLAIM = """\
claim: A larger budget breaks more & more images.
evaluate:
  dataset: digits
  model: net.py:net
  threat: [{norm: linf, epsilon: 0.02}, {norm: linf, epsilon: 0.1}]
  attacks: [fgsm]
  limit: 200
seeds: [0, 1]
expect:
  - {lower: {epsilon: 0.1}, higher: {epsilon: 0.02}, by: 0.01}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "claim.yaml").write_text(CLAIM)
    return tmp_path


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["guard", "claim", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.out, printed.err

    return call


def test_a_claim_from_end_to_end(here: Path) -> None:
    command = [sys.executable, "-m", "guard", "claim", "claim.yaml", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "seed 0, 1 of 2\nseed 1, 2 of 2\n"
    *table, where, last = done.stdout.splitlines()
    assert (where, last) == ("out/index.html", "supported: A larger budget breaks more & more images.")
    heading = "1: fgsm on none, adaptive, epsilon 0.1 is below fgsm on none, adaptive, "
    assert any(line.startswith(heading) for line in table)
    rows = [line.split() for line in table if line.endswith("holds")]
    found = json.loads((here / "out/claim.json").read_text())
    assert [row[0] for row in rows] == ["0", "1"]
    assert rows[0][1] == f"{100 * found['comparisons'][0]['lower']['value']:.1f}"
    assert (found["verdict"], found["images"], found["schema_version"]) == ("supported", 200, 1)
    assert found["folders"] == {"0": "seed-0", "1": "seed-1"}
    files = {str(path.relative_to(here / "out")) for path in (here / "out").rglob("*.*") if path.is_file()}
    each = {f"seed-{n}/{file}" for n in (0, 1) for file in ("config.json", "results.json", "results.csv")}
    each |= {f"seed-{n}/{file}" for n in (0, 1) for file in ("report.md", "report.html")}
    assert files == {"claim.json", "config.json", "index.html"} | each
    page = (here / "out/index.html").read_text()
    assert 'href="seed-1/report.html"' in page
    assert "<h1>A larger budget breaks more &amp; more images.</h1>" in page
    assert 'class="verdict supported"' in page
    assert "http" not in page


def test_the_config_that_is_written_is_the_claim(here: Path, typed: Any) -> None:
    assert typed("claim.yaml", "--out", "out", "--quiet") == (
        0,
        "supported: A larger budget breaks more & more images.\n",
        "",
    )
    assert typed("out/config.json", "--out", "out", "--quiet")[0] == 0
    assert typed("out/seed-0/config.json", "--quiet")[2].startswith(
        "'out/seed-0/config.json' has 'attacks', as configs"
    )


def test_whatever_comes_out_is_exit_code_0(here: Path, typed: Any) -> None:
    (here / "claim.yaml").write_text(CLAIM.replace("0.1}, higher: {epsilon: 0.02}", "0.02}, higher: {epsilon: 0.1}"))
    code, out, _ = typed("claim.yaml", "--quiet")
    assert (code, out) == (0, "contradicted: A larger budget breaks more & more images.\n")
    code, out, _ = typed("claim.yaml", "--set", "evaluate.limit=2")
    assert code == 0
    assert out.splitlines()[-1] == (
        "undecided: A larger budget breaks more & more images. (line 1 shows no difference beyond chance in seeds 0, 1)"
    )
    assert not (here / "runs").exists()


def test_bad_input_is_one_line_and_exit_code_2(typed: Any) -> None:
    for settings, message in [
        ("evaluate.attacks=[fgm]", "no attack is named 'fgm' (claim.yaml and the command line, evaluate.attacks[0]). "),
        ("evaluate.model=small-cnn", "model 'small-cnn' is trained, and seeds are 2"),
        (
            "expect=[{lower: {epsilon: 0.1}, higher: {epsilon: 0.2}}]",
            "expect[0].higher selects no cell, for no epsilon",
        ),
        ("evaluate.limit=0", "limit is 0"),
    ]:
        code, out, err = typed("claim.yaml", "--set", settings, "--out", "out")
        assert (code, out) == (2, "")
        assert err.startswith(message), err
        assert err.count("\n") == 1
    assert not Path("out/claim.json").exists()


def test_another_command_points_here(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("claim: It holds.\nexpect: []\n")
    with pytest.raises(InputError, match=r"has 'claim', as configs of `guard claim` do. Run guard claim "):
        read(EvaluationConfig, tmp_path / "own.yaml")
