"""Everything the README shows is run here, and what it prints is what the README says."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from guard import Registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MODELS = ("small-cnn", "resnet18-cifar")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def following(text: str) -> str:
    """The output that the README shows after a block."""
    return next(shown for kind, shown in BLOCKS[BLOCKS.index(("python", text)) + 1 :] if kind == "text")


def guard(command: str, folder: Path, cache: Path) -> "subprocess.CompletedProcess[str]":
    """Run the arguments of a `guard` command line in a folder, as a shell would."""
    environment = os.environ | {"GUARD_CACHE": str(cache), "COLUMNS": "80"}
    line = command.replace("guard ", f"{sys.executable} -m guard ", 1)
    return subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def test_the_two_commands() -> None:
    first, second, *_ = blocks("sh")
    assert first == "pip install -e . && guard evaluate configs/quickstart.yaml\n"
    assert second == 'pip install -e ".[test]" && pytest\n'
    assert (ROOT / "configs/quickstart.yaml").exists()
    assert r'pip install -e "\.\[test\]" && pytest' in (ROOT / ".ci/run").read_text()


def test_the_configs_are_the_files() -> None:
    assert len(blocks("yaml")) == 2
    for shown in blocks("yaml"):
        name = shown.splitlines()[0].removeprefix("# ")
        assert yaml.safe_load(shown) == yaml.safe_load((ROOT / name).read_text())


def test_the_picture_is_there() -> None:
    (path,) = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert (ROOT / path).stat().st_size > 10_000


def test_your_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks("python")[0]
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README", "exec"), {"__name__": "readme"})
    ours, shown = printed.getvalue().splitlines(), following(code).splitlines()
    assert len(ours) == len(shown) == 2
    for one, other in zip(ours, shown, strict=True):
        assert re.sub(r"[\d.]+", "0", one) == re.sub(r"[\d.]+", "0", other)
        for a, b in zip(re.findall(r"\d\.\d+", one), re.findall(r"\d\.\d+", other), strict=True):
            assert float(a) == pytest.approx(float(b), abs=0.01)


def test_training(workplace: Path, quickstart_cache: Path) -> None:
    train, judge = blocks("sh")[2:4]
    done = guard(train.strip(), workplace, quickstart_cache)
    assert done.returncode == 0, done.stderr
    shown = BLOCKS[BLOCKS.index(("sh", train)) + 1][1].splitlines()
    alike(done.stderr.splitlines()[-3:], shown[:3])
    ours = [line.rstrip() for line in done.stdout.splitlines()[1:7]]
    assert [line for line in ours if not line.startswith("epoch")] == [
        line for line in shown[4:10] if not line.startswith("epoch")
    ]
    done = guard(judge.strip(), workplace, quickstart_cache)
    assert done.returncode == 0, done.stderr
    shown = BLOCKS[BLOCKS.index(("sh", judge)) + 1][1].splitlines()
    ours = [line.rstrip() for line in done.stdout.splitlines()[1:6]]
    assert ours[:2] + ours[3:4] == shown[:2] + shown[3:4]
    alike(ours[4:], shown[4:])


def alike(ours: list[str], shown: list[str]) -> None:
    """The same words, and figures that differ by what another number of threads makes of 120 or 597 images."""
    for one, other in zip(ours, shown, strict=True):
        words, figures = (
            [re.findall(pattern, line) for line in (one, other)] for pattern in (r"[A-Za-z]+", r"\d+\.\d+")
        )
        assert words[1] == [word for word in words[0] if word != "s"]
        for a, b in zip(figures[0], figures[1], strict=False):  # ours has the seconds behind them
            assert float(a) == pytest.approx(float(b), abs=5)


def test_the_plugin_of_eight_lines(workplace: Path, quickstart_cache: Path) -> None:
    code = blocks("python")[1]
    lines = [line for line in code.splitlines() if not line.startswith(("#", "@"))]
    assert len([line for line in lines if '"""' not in line]) <= 8
    (workplace / "mine.py").write_text(code)
    command = blocks("sh")[4].strip()
    done = guard(command, workplace, quickstart_cache)
    assert done.returncode == 0, done.stderr
    results = json.loads((workplace / "runs/corner/results.json").read_text())
    corner, pgd = results["cells"]
    assert (corner["label"], corner["status"], pgd["status"]) == ("corner", "VALID", "VALID")
    assert pgd["robust_accuracy"] < corner["robust_accuracy"] < corner["clean_accuracy"]
    assert results["plugins"]["attack corner"].startswith("'mine' (")
    assert (workplace / "runs/corner/plugins/mine.py").read_text() == code
    assert len(done.stdout.splitlines()) >= len(following(code).splitlines())


def test_the_defense(workplace: Path, quickstart_cache: Path) -> None:
    (workplace / "darker.py").write_text(blocks("python")[2])
    settings = "--plugin darker.py --set defenses=[darker] --set attacks=[fgsm] --limit 50 --out runs/darker"
    done = guard(f"guard evaluate configs/quickstart.yaml {settings}", workplace, quickstart_cache)
    assert done.returncode == 0, done.stderr
    cells = json.loads((workplace / "runs/darker/results.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["VALID", "VALID"]


def test_the_attacks_of_audit_strength(workplace: Path, quickstart_cache: Path) -> None:
    command = blocks("sh")[5].strip()
    done = guard(f"{command} --limit 40", workplace, quickstart_cache)
    assert done.returncode == 0, done.stderr
    shown = BLOCKS[BLOCKS.index(("sh", blocks("sh")[5])) + 1][1].splitlines()
    ours = done.stdout.strip().splitlines()
    assert ours[2].split() == shown[2].split()
    assert [line.split()[0] for line in ours[4:6]] == [line.split()[0] for line in shown[4:6]]
    assert ours[6].startswith("fast is an estimate. It left undecided ")
    cells = json.loads((workplace / "runs/digits-autoattack/results.json").read_text())["cells"]
    for start in (0, 4):
        pgd, fast, auto, fab = cells[start : start + 4]
        assert {cell["status"] for cell in (pgd, fast, auto, fab)} == {"VALID"}
        assert auto["robust_accuracy"] <= fast["robust_accuracy"] <= pgd["robust_accuracy"]
        assert auto["parts"][0]["name"] == "fast-autoattack"
        assert fab["curve"]


def test_the_transfers(workplace: Path, quickstart_cache: Path) -> None:
    command = blocks("sh")[6].strip()
    settings = "--set defenses=[none] --set training.epochs=1 --limit 20"
    done = guard(f"{command} {settings}", workplace, quickstart_cache)
    assert done.returncode == 0, done.stderr
    shown = BLOCKS[BLOCKS.index(("sh", blocks("sh")[6])) + 1][1].splitlines()
    ours = [line.rstrip() for line in done.stdout.splitlines()]
    assert shown[1] in ours
    cells = json.loads((workplace / "runs/transfer/results.json").read_text())["cells"]
    assert {cell["status"] for cell in cells} <= {"VALID", "SUSPECT"}  # one epoch may leave a network at chance
    sources = {(cell["model"], cell["source"]) for cell in cells if cell["knowledge"] == "transfer"}
    assert sources == {(model, source) for model in MODELS for source in MODELS}
    own = {cell["label"]: cell for cell in cells if cell["model"] == cell["source"] == "small-cnn"}
    white = {cell["label"]: cell for cell in cells if cell["model"] == "small-cnn" and cell["knowledge"] == "adaptive"}
    assert white["bim"]["robust_accuracy"] <= own["bim"]["robust_accuracy"]


def test_what_attacks_learned(workplace: Path, quickstart_cache: Path) -> None:
    command = blocks("sh")[7].strip()
    done = guard(f"{command} --set training.epochs=3 --limit 50", workplace, quickstart_cache)
    assert done.returncode == 0, done.stderr
    shown = BLOCKS[BLOCKS.index(("sh", blocks("sh")[7])) + 1][1].splitlines()
    ours = [line.split() for line in done.stdout.splitlines()]
    for number in (1, 2, 3, 8):  # the attacks and what is said of them, but for no figure
        assert shown[number].split() in ours
    assert "advgan-black-box learned against small-cnn on 1,200 training images of digits," in done.stdout
    cells = json.loads((workplace / "runs/digits-learned/results.json").read_text())["cells"]
    assert {cell["status"] for cell in cells} == {"VALID"}
    assert {cell["label"]: cell["fit_forwards"] for cell in cells}["advgan-black-box"] == 7200
    assert (workplace / "runs/digits-learned/attacks/uap.png").exists()


def test_the_claim(workplace: Path, quickstart_cache: Path) -> None:
    command = blocks("sh")[8]
    done = guard(command.strip(), workplace, quickstart_cache)
    assert done.returncode == 0, done.stderr
    shown = BLOCKS[BLOCKS.index(("sh", command)) + 1][1]
    # but for the figures, which another number of threads changes, and with them the widths of columns
    ours, theirs = (
        [line.split() for line in text.strip().splitlines() if "%" not in line and "[" not in line and "─" not in line]
        for text in (done.stdout, shown)
    )
    assert ours == theirs
    assert len(done.stdout.strip().splitlines()) == len(shown.strip().splitlines())
    assert done.stdout.strip().splitlines()[-1].startswith("contradicted: A network keeps its prediction")


def test_photographs_become_cue_conflicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for number, name in enumerate(("red", "green", "blue")):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for photo in range(2):
            pixels = draw.integers(0, 90, (230, 240, 3), dtype=np.uint8)
            pixels[:, :, number] += 120
            Image.fromarray(pixels).save(tmp_path / "photographs" / name / f"{photo}.png")

    class Colors(nn.Module):
        """Knows the classes, which come in alphabetical order."""

        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Conv2d(3, 3, 32, 32, bias=False)
            self.pool.weight.data = torch.eye(3)[[2, 1, 0]][:, :, None, None].expand(3, 3, 32, 32) / 1024

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.pool(images).amax((2, 3))

    script = blocks("python")[-1]
    line = next(line for line in script.splitlines() if line.startswith("model = ..."))
    script = script.replace(line, "").replace("pairs=40)", "pairs=2, steps=2)")
    exec(script, {"model": Colors()})
    found = Registry.load().create("dataset", {"name": "cue-conflict", "root": "conflicts"})
    assert len(found.load("test")) == 2
    assert (found.textures("test") != found.load("test").labels).all()


@pytest.mark.parametrize("command", re.findall(r"`(guard (?:list|describe|schema)[^`]*)`", README))
def test_small_commands(command: str, workplace: Path) -> None:
    (workplace / "mine.py").write_text(blocks("python")[1])
    done = guard(command, workplace, workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid(path: Path) -> None:
    from guard.config import EvaluationConfig
    from guard.configfile import read
    from guard.trainingconfig import TrainingConfig

    text = path.read_text()
    assert text.startswith("# ")
    if "attacks:" in text:
        assert read(EvaluationConfig, path)[0].attacks
    else:
        assert read(TrainingConfig, path)[0].defense.stack.members
