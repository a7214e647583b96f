"""guard train as a user runs it: in processes of its own, killed, on two devices, and what it left evaluated."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import guard
from guard.cli import main

CONFIG = """\
dataset: digits
model: small-cnn
threat: {norm: linf, epsilon: 0.1}
defense: {name: adversarial-training, attack: {name: bim, steps: 2}}
training: {epochs: 3, batch_size: 100, lr: 0.1}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, and what it trained in one piece."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "robust.yaml").write_text(CONFIG)
    done = run(folder, "train", "robust.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs/robust/training.html"
    assert "small-cnn trained with adversarial-training on digits, linf 0.1" in done.stdout
    assert [line[:12] for line in done.stderr.splitlines()] == [f"epoch {number} of 3" for number in (1, 2, 3)]
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "guard", *arguments]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"GUARD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "weights.safetensors")
    return found


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_it_leaves_weights_a_record_curves_and_a_page(place: Path) -> None:
    folder = place / "runs/robust"
    names = [".lock", "config.json", "curves.csv", "training.html", "training.json", "weights.safetensors"]
    assert sorted(file.name for file in folder.iterdir()) == names
    record: dict[str, Any] = json.loads((folder / "training.json").read_text())
    assert record["finished"]
    assert len(record["epochs"]) == 3
    assert (record["images"], record["held_out"]) == (1080, 120)
    assert record["epochs"][record["kept"] - 1]["pgd"] == max(epoch["pgd"] for epoch in record["epochs"])
    assert len((folder / "curves.csv").read_text().splitlines()) == 4
    assert "<svg" in (folder / "training.html").read_text()
    assert set(weights(folder)) == {f"{layer}.{kind}" for layer in (0, 3, 7, 9) for kind in ("weight", "bias")}


def test_its_folder_is_a_model(place: Path) -> None:
    net = guard.load(place / "runs/robust")
    assert type(net) is torch.nn.Sequential
    assert not net.training
    assert torch.equal(net.state_dict()["0.weight"], weights(place / "runs/robust")["0.weight"])
    (place / "judge.yaml").write_text(
        "dataset: digits\nmodel: runs/robust\nthreat: {norm: linf, epsilon: 0.05}\nattacks: [fgsm]\nlimit: 200\n"
    )
    done = run(place, "evaluate", "judge.yaml", "--no-train")
    assert done.returncode == 0, done.stderr
    cell = json.loads((place / "runs/judge/results.json").read_text())["cells"][0]
    assert cell["model"] == "robust"
    source = guard.Registry.load().create("dataset", "digits").load("test")[:200]
    with torch.no_grad():
        predicted = net(source.floats()).argmax(1)
    assert cell["clean_accuracy"] == pytest.approx(float((predicted == source.labels).double().mean()))


def test_killed_at_any_time_it_goes_on_to_the_same_weights(place: Path) -> None:
    """kill -9, in an epoch and while it writes; the same command goes on."""
    out = place / "killed"
    for epochs in (1, 2):
        process = subprocess.Popen(
            command("train", "robust.yaml", "--out", "killed"), cwd=place, env=environment(place),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + 120
        while _epochs(out) < epochs and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not json.loads((out / "training.json").read_text())["finished"]
    done = run(place, "train", "robust.yaml", "--out", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    assert "epoch 1 of 3" not in done.stderr
    assert same(out, place / "runs/robust")
    before, after = (json.loads((folder / "training.json").read_text()) for folder in (place / "runs/robust", out))
    for epoch in (*before["epochs"], *after["epochs"]):
        del epoch["seconds"]
    assert before == after


def _epochs(folder: Path) -> int:
    try:
        return len(json.loads((folder / "training.json").read_text())["epochs"])
    except (OSError, ValueError):
        return 0


@pytest.mark.parametrize("launcher", ["fabric", "torchrun"])
def test_two_processes_give_what_one_gives(launcher: str, place: Path) -> None:
    """Of a network without BatchNorm and an adversary without draws, up to the rounding of sums, which turns a few of
    the signs of gradients near 0 around."""
    arguments = ["train", "robust.yaml", "--devices", "2", "--out", launcher]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "guard"]
    full = command(*arguments) if launcher == "fabric" else [*torchrun, *arguments]
    done = subprocess.run(full, cwd=place, env=environment(place), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("small-cnn trained with") == 1, "one writer"
    one, two = weights(place / "runs/robust"), weights(place / launcher)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-4)
    assert not (place / launcher / "checkpoint.safetensors").exists()


def test_a_dry_run_does_one_batch_of_everything_and_leaves_nothing(place: Path) -> None:
    done = run(place, "train", "robust.yaml", "--dry-run", "--out", "dry")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("one batch of everything went through; the whole training would")
    assert not (place / "dry").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--out", "new"], "'new' holds no training that was stopped. Leave --resume out to begin one"),
        (["--set", "defense=[trades, mart]"], "defenses 'trades' and 'mart' both bring their own adversary"),
        (["--set", "defence=trades"], "config has no key 'defence'"),
        (["--set", "training.epochs=4"], "output folder 'runs/robust' belongs to another config"),
        (
            ["--set", "training.optimizer=sdg", "--out", "x"],
            "optimizer is 'sdg' (robust.yaml and the command line, training)",
        ),
        (["--set", "training.augmentation=[crops]", "--out", "x"], "augmentation[0] is 'crops' (robust.yaml"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["guard", "train", "robust.yaml", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_finished_training_is_not_done_again(place: Path) -> None:
    before = (place / "runs/robust/weights.safetensors").stat().st_mtime_ns
    done = run(place, "train", "robust.yaml")
    assert done.returncode == 0
    assert "finished" in done.stderr
    assert (place / "runs/robust/weights.safetensors").stat().st_mtime_ns == before


def test_images_of_ones_own_and_a_network_of_another_number_of_classes(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder, and a network of torchvision with weights of ImageNet's shape, by two commands."""
    import torchvision
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    torch.save(torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict(), place / "imagenet.pt")
    for split, name, channel in product(("train", "test"), ("cat", "dog"), (0, 1)):
        folder = place / "photos" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 120, (40, 50, 3), generator=generator, dtype=torch.uint8)
        pixels[..., ("cat", "dog").index(name)] += 120
        for number in range(4):
            Image.fromarray(pixels.numpy()).save(folder / f"{channel}{number}.png")
    data = "dataset: {name: folder, path: photos, resize: 36, crop: 32}\nthreat: {norm: linf, epsilon: 4/255}\n"
    model = "model: {name: torchvision, variant: shufflenet_v2_x0_5, weights: imagenet.pt}\n"
    rest = "defense: fgsm-rs\ntraining: {epochs: 1, batch_size: 4, augmentation: [crop, flip]}\n"
    (place / "own.yaml").write_text(data + model + rest)
    (place / "judged.yaml").write_text(data + "model: runs/own\nattacks: [fgsm]\n")
    monkeypatch.chdir(place)
    monkeypatch.setenv("GUARD_CACHE", str(place / "cache"))
    for line in (["train", "own.yaml"], ["evaluate", "judged.yaml"]):
        monkeypatch.setattr(sys, "argv", ["guard", *line])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    told = capsys.readouterr()
    assert "weights 'imagenet.pt' are for 1000 classes: the last layer, fc, is a new one for 2" in told.err
    assert "own on folder, linf 4/255, untargeted, seed 0, 16 images" in told.out


def test_a_folder_without_a_training_is_no_model(place: Path) -> None:
    with pytest.raises(guard.InputError, match=r"holds no trained network. Give the folder that guard train wrote"):
        guard.load(place)
