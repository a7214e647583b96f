"""What was learned is kept: in a file that another evaluation takes, in the cache, and when its learning is killed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from guard_plugins.attacks.advgan import AdvGan
from guard_plugins.attacks.atn import Atn
from guard_plugins.attacks.universal import Uap
from torch import Tensor, nn

import guard
from guard import Defense, InputError, LearnedAttack, Progress, Report, ThreatModel
from guard.cli import main
from guard.evaluation.result import Fit

LINF = ThreatModel(norm="linf", epsilon=0.1)
PLUGIN = '''
from torch import nn
from guard import LearnedAttack, hookimpl

class Shade(LearnedAttack):
    """Learns what to add to an image."""
    name = "shade"
    def unfitted(self, num_classes, image_shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Unflatten(1, image_shape))
    def objective(self, step, victim, goal):
        logits = victim.module(step.images + step.threat.epsilon * step.model(step.images))
        return logits.log_softmax(1).gather(1, goal.labels[:, None]).mean()
    def craft(self, module, images, goal, threat, rng):
        return images + threat.epsilon * module(images)

@hookimpl
def guard_attacks():
    return [Shade]
'''
NET = """
import torch
from sklearn.datasets import load_digits

def net(num_classes):
    digits = load_digits()
    images, labels = torch.from_numpy(digits.data[:1200]).float() / 16, torch.from_numpy(digits.target[:1200])
    means = torch.stack([images[labels == number].mean(0) for number in range(num_classes)])
    linear = torch.nn.Linear(64, num_classes)
    linear.weight.data, linear.bias.data = means, -means.square().sum(1) / 2
    return torch.nn.Sequential(torch.nn.Flatten(), linear)
"""


class Killed(BaseException):
    """As if the process were gone."""


class Kills(Progress):
    """Kills what learns after so many updates."""

    def __init__(self, at: int = -1) -> None:
        self.left, self.learning, self.updates = at, False, 0

    def start(self, what: str, total: int) -> None:
        self.learning = "learning" in what

    def advance(self, units: int, what: str = "") -> None:
        if self.learning and what:  # what is not named was done before
            self.left, self.updates = self.left - 1, self.updates + units
            if self.left == 0:
                raise Killed


class Blur(Defense):
    """Halves the contrast."""

    name = "blur"

    def preprocess(self, images: Tensor, rng: guard.Rng) -> Tensor:
        return (images + 0.5) / 2


class Jitter(Defense):
    """Random brightness."""

    name = "jitter"
    randomized = True

    def preprocess(self, images: Tensor, rng: guard.Rng) -> Tensor:
        return images + 0.1 * rng.normal(()).view(-1, 1, 1, 1).to(images)


class Line(nn.Module):
    """Two classes of images (1, 8, 8), with a mode of its own in training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.utils.skip_init(nn.Linear, 64, 2), nn.Dropout(0.5)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.linear((images - 0.5).flatten(1)))


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def evaluate(pictures: Tensor, attack: LearnedAttack, progress: Progress | None = None, **settings: Any) -> Report:
    net = Line().eval()
    with torch.no_grad():
        labels = net(pictures).argmax(1)
    keys = {"attacks": [attack], "threat": LINF, "train_data": (pictures[40:], labels[40:]), "progress": progress}
    return guard.evaluate(net, (pictures[:40], labels[:40]), **(keys | settings))  # type: ignore[arg-type]


def what(fit: Fit | None) -> dict[str, Any]:
    """All of it but the seconds."""
    assert fit is not None
    told = fit.model_dump(exclude={"seconds": True, "epochs": {"__all__": {"seconds"}}})
    assert told["epochs"]
    return told


@pytest.mark.parametrize("name", ["uap", "advgan", "atn"])
def test_weights_of_a_run_are_used_in_another(
    name: str, pictures: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without training data, and with nothing in the cache."""
    small: dict[str, Any] = {"name": name, "epochs": 2, "batch_size": 16} | ({"hidden": 8} if name == "atn" else {})
    settings: dict[str, Any] = {"defenses": ["none", Blur()], "keep_images": True}
    first = evaluate(pictures, small, out=tmp_path / "first", **settings)  # type: ignore[arg-type]
    file = tmp_path / "first" / "attacks" / f"{name}.safetensors"
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "empty"))
    settings |= {"train_data": None, "no_train": True}
    again = evaluate(pictures, small | {"weights": str(file)}, out=tmp_path / "again", **settings)  # type: ignore[arg-type]
    own = {"key", "seconds", "attack_parameters", "candidates"}
    assert [cell.model_dump(exclude=own) for cell in again.cells] == [c.model_dump(exclude=own) for c in first.cells]
    assert first.cells[0].max_distance is not None
    assert first.cells[0].max_distance > 0.01
    assert not list((tmp_path / "empty" / "weights").glob("*.safetensors")), "nothing was learned"
    kept = safetensors.torch.load_file(file)
    written = safetensors.torch.load_file(tmp_path / "again" / "attacks" / f"{name}.safetensors")
    assert kept.keys() == written.keys()
    assert all(torch.equal(kept[key], written[key]) for key in kept)


def test_weights_that_do_not_say_where_they_come_from_are_refused(pictures: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "it.safetensors"
    safetensors.torch.save_file({"perturbation": torch.zeros(1, 1, 8, 8)}, file)
    with pytest.raises(InputError) as caught:
        evaluate(pictures, Uap(weights=str(file)))
    assert str(caught.value).startswith(f"'{file}' does not say what it was learned on. Give what guard wrote")
    assert "\n" not in str(caught.value)
    safetensors.torch.save_file({"perturbation": torch.zeros(1, 1, 4, 4)}, file)
    with pytest.raises(InputError, match="do not fit the model: 1 of another shape"):
        evaluate(pictures, Uap(weights=str(file)))


def test_what_is_damaged_in_the_cache_is_learned_again(pictures: Tensor, cache: Path) -> None:
    first = evaluate(pictures, Uap(epochs=1)).cells[0]
    (file,) = (cache / "weights").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    assert what(evaluate(pictures, Uap(epochs=1)).cells[0].fit) == what(first.fit)
    assert (
        evaluate(pictures, Uap(epochs=1), no_train=True).cells[0].fit == evaluate(pictures, Uap(epochs=1)).cells[0].fit
    )


DYNAMIC = AdvGan(distillation="dynamic", answers="labels", epochs=2, distil_epochs=1, rounds=1, batch_size=32)


@pytest.mark.parametrize(
    ("attack", "at", "inside"),
    [(Uap(epochs=2, batch_size=16), *where) for where in ((1, False), (5, True), (7, False), (7, True), (10, True))]
    + [(AdvGan(epochs=2, batch_size=32), 4, True), (DYNAMIC, 2, True), (DYNAMIC, 8, False), (DYNAMIC, 8, True)],
    ids=lambda item: getattr(item, "name", item),
)
def test_killed_while_it_learns_it_goes_on(
    attack: LearnedAttack, at: int, inside: bool, pictures: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same weights, figures and counts of queries: from the last epoch's end, or from inside an epoch."""
    if inside:
        monkeypatch.setattr("guard.training.loop._SAVE", -1.0)
        monkeypatch.setattr("guard.training.loop._EVERY", 1)
    whole, rest = Kills(), Kills()
    undisturbed = evaluate(pictures, attack, whole, out=tmp_path / "undisturbed").cells[0]
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "other"))
    with pytest.raises(Killed):
        evaluate(pictures, attack, Kills(at))
    assert not list((tmp_path / "other" / "weights").glob("*.safetensors"))
    resumed = evaluate(pictures, attack, rest, out=tmp_path / "resumed").cells[0]
    epoch = whole.updates // attack.training().epochs
    assert rest.updates == whole.updates - (at - 1 if inside else (at - 1) // epoch * epoch)
    assert what(resumed.fit) == what(undisturbed.fit)
    one, other = (
        safetensors.torch.load_file(tmp_path / name / "attacks" / f"{attack.name}.safetensors")
        for name in ("undisturbed", "resumed")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert resumed.robust_accuracy == undisturbed.robust_accuracy
    assert [path.suffix for path in (tmp_path / "other" / "weights").iterdir()] == [".safetensors"]


def test_draws_of_a_defense_go_on_too(
    pictures: Tensor, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.training.loop._SAVE", -1.0)
    monkeypatch.setattr("guard.training.loop._EVERY", 1)
    attack, other = Atn(epochs=2, batch_size=32, hidden=8, refit=True), tmp_path / "other"
    fit = evaluate(pictures, attack, defenses=[Jitter()]).cells[0].fit
    assert fit is not None
    assert fit.kept == 2
    monkeypatch.setenv("GUARD_CACHE", str(other))
    with pytest.raises(Killed):
        evaluate(pictures, attack, Kills(5), defenses=[Jitter()])
    evaluate(pictures, attack, defenses=[Jitter()])
    files = sorted(file.name for file in (cache / "weights").iterdir())
    assert files == sorted(file.name for file in (other / "weights").iterdir())
    assert len(files) == 2, "against the defense, and without it"
    for name in files:
        one, again = (safetensors.torch.load_file(folder / "weights" / name) for folder in (cache, other))
        assert all(torch.equal(one[key], again[key]) for key in one)


def test_weights_of_another_game_and_of_the_images_themselves_are_refused(pictures: Tensor, tmp_path: Path) -> None:
    evaluate(pictures, Uap(epochs=1), goal={"targets": 1}, out=tmp_path)
    given = Uap(weights=str(tmp_path / "attacks" / "uap.safetensors"))
    settings: dict[str, Any] = {"goal": {"targets": 1}, "train_data": None}
    assert evaluate(pictures, given, **settings).cells[0].status == "VALID"
    for change, text in (
        ({"goal": "untargeted"}, "was learned with goal targeted: 1, and attack 'uap' has untargeted"),
        ({"threat": ThreatModel(norm="l2", epsilon=1)}, "was learned with norm linf, and attack 'uap' has l2"),
    ):
        with pytest.raises(InputError, match=text) as caught:
            evaluate(pictures, given, **(settings | change))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="learned, or would learn, on 40 of the 40 images that it is evaluated on"):
        evaluate(pictures[80:], given, **settings)


def test_a_third_partys_attack_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three methods in a file."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PLUGIN)
    Path("net.py").write_text(NET)
    Path("x.yaml").write_text(
        "dataset: digits\nmodel: net.py:net\nthreat: {norm: linf, epsilon: 0.3}\n"
        "attacks: [noise, {name: shade, epochs: 5, lr: 0.03}]\ndefenses: [none, median]\nlimit: 100\n"
    )
    monkeypatch.setattr(sys, "argv", ["guard", "evaluate", "x.yaml", "--plugin", "mine.py", "--out", "run"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0, capsys.readouterr().err
    results = json.loads(Path("run/results.json").read_text())
    noise, shade = (cell for cell in results["cells"] if cell["defense"] == "none")
    assert noise["clean_accuracy"] > 0.8
    assert shade["robust_accuracy"] < noise["robust_accuracy"] - 0.2
    assert shade["fit"]["images"] == 1080
    assert shade["fit_forwards"] == 5 * 1200
    assert shade["forwards_per_image"] == 0
    assert Path("run/attacks/shade.safetensors").is_file()


class Blind(nn.Module):
    """Answers, and gives no gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images.detach())
        return logits.detach()


def test_against_a_model_without_gradients_nothing_is_learned_in_silence(
    linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    attacks = [Atn(epochs=1, hidden=4), AdvGan(epochs=1)]  # of images of 4 x 4, too
    data = (images[:50], labels[:50])
    report = guard.evaluate(Blind(linear), data, attacks=attacks, threat=LINF, train_data=(images[50:], labels[50:]))
    assert {cell.status for cell in report.cells} == {"INVALID"}
    assert all("gives no gradient" in cell.reason for cell in report.cells)
