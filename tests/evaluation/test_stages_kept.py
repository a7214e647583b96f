"""What defenses learned is kept in the run's folder, for other runs; and none of it is learned on what is evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from guard_plugins.attacks.universal import Uap
from torch import Generator, Tensor, nn

import guard
from guard import InputError, LearnedDefense, Progress, Report, Rng, Step, ThreatModel

LINF = ThreatModel(norm="linf", epsilon=0.05)


class Shift(LearnedDefense):
    """Learns to make images as they are, or darker, whatever the model."""

    name = "shift"
    against = False
    epochs: int = 1
    lr: float = 0.03
    scale: float = 1.0

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        return nn.Conv2d(1, 1, 1)

    def objective(self, step: Step, model: nn.Module) -> Tensor:
        return (step.model(step.images) - self.scale * step.images).square().mean()

    def seen(
        self,
        module: nn.Module,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        generator: Generator,
    ) -> dict[str, Tensor]:
        return {"kept": -(module(images) - self.scale * images).flatten(1).abs().mean(1)}

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        restored: Tensor = self.module(images)
        return restored.clamp(0, 1)


class Before(Shift):
    """Learns in front of each model anew."""

    name = "before"
    against = True


class Heard(Progress):
    """What was said, and what was learned."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.learned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def start(self, what: str, total: int) -> None:
        if "learning" in what:
            self.learned.append(what)


class Line(nn.Module):
    """Two classes of images (1, 8, 8)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, 64, 2)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear((images - 0.5).flatten(1))
        return logits


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def evaluate(pictures: Tensor, *defenses: Any, heard: Progress | None = None, **settings: Any) -> Report:
    """On the first 100 images; the others may be learned on."""
    labels = Line()(pictures).argmax(1)
    keys: dict[str, Any] = {"attacks": ["fgsm"], "threat": LINF, "train_data": (pictures[100:], labels[100:])}
    keys |= {"model": Line(), "defenses": list(defenses), "progress": heard}
    return guard.evaluate(dataset=(pictures[:100], labels[:100]), **(keys | settings))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def note(file: Path) -> dict[str, Any]:
    with safetensors.safe_open(file, framework="pt") as opened:
        found: dict[str, Any] = json.loads(opened.metadata()["note"])
    return found


SMALL: dict[str, dict[str, Any]] = {
    "learned-denoiser": {"depth": 2, "width": 4, "epochs": 1, "batch_size": 64, "lr": 0.3, "images": 150},
    "hgd": {"width": 4, "epochs": 1, "batch_size": 64, "lr": 0.3},
}


@pytest.mark.parametrize("name", SMALL)
def test_what_a_run_learned_is_used_in_another(
    name: str, pictures: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without training data, and with nothing in the cache; and what that wrote is used in a third."""
    defense, heard = {"name": name, **SMALL[name]}, Heard()
    first = evaluate(pictures, "none", defense, heard=heard, out=tmp_path / "0")
    assert len(heard.learned) == 1
    own = {"key", "seconds", "candidates"}
    for number in (1, 2):
        monkeypatch.setenv("GUARD_CACHE", str(tmp_path / f"empty{number}"))
        given, heard = tmp_path / str(number - 1) / "defenses" / f"{name}.safetensors", Heard()
        again = evaluate(
            pictures, "none", defense | {"weights": str(given)}, heard=heard, out=tmp_path / str(number),
            train_data=None, no_train=True,
        )  # fmt: skip
        assert [cell.model_dump(exclude=own) for cell in again.cells] == [
            cell.model_dump(exclude=own) for cell in first.cells
        ]
        assert heard.learned == heard.said == []
        written = tmp_path / str(number) / "defenses" / f"{name}.safetensors"
        one, other = safetensors.torch.load_file(given), safetensors.torch.load_file(written)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert note(written) == note(given)
    bare, defended = ((cell.clean_accuracy, cell.robust_accuracy) for cell in first.cells)
    assert bare != defended, "it changes what is seen"


def test_a_file_says_what_was_learned_and_on_what(pictures: Tensor, tmp_path: Path) -> None:
    """The same, whether it was learned for this run or for an earlier one."""
    for run in ("learned", "kept"):
        evaluate(pictures, Before(images=50, scale=0.5), out=tmp_path / run, threat={"norm": "l2", "epsilon": 1.5})
    told, kept = (note(tmp_path / run / "defenses" / "before.safetensors") for run in ("learned", "kept"))
    assert told == kept
    assert (told["defense"]["name"], told["defense"]["scale"], told["model"]) == ("before", 0.5, "Line + before")
    assert (told["images"], told["held_out"], told["norm"], told["epsilon"], told["seed"]) == (45, 5, "l2", 1.5, 0)
    assert [epoch["epoch"] for epoch in told["epochs"]] == [told["kept"]] == [1]
    evaluate(pictures, Shift(), out=tmp_path / "alone")
    assert note(tmp_path / "alone" / "defenses" / "shift.safetensors")["model"] is None


def test_where_what_was_learned_lies(pictures: Tensor, tmp_path: Path) -> None:
    """Under its label, in a stack of several under its name; once each."""
    labelled = {"name": "hgd", **SMALL["hgd"], "as": "mine"}
    evaluate(pictures, "none", "median", Shift(), ["median", Before()], labelled, out=tmp_path, attacks=["fgsm", "pgd"])
    assert files(tmp_path / "defenses") == ["before.safetensors", "mine.safetensors", "shift.safetensors"]
    evaluate(pictures, "none", "median", out=tmp_path / "none")
    assert not (tmp_path / "none" / "defenses").exists()


def test_each_of_several_lessons_lies_in_a_folder_of_its_own(pictures: Tensor, tmp_path: Path) -> None:
    """In front of two networks; and twice in one stack. What learned once for both networks lies there once."""
    first, second = evaluate(
        pictures, ["median", Before(), Before(scale=0.5), Shift()], model=[Line(), Line(1)], out=tmp_path
    ).cells
    expected = [f"{cell.key}{end}/before.safetensors" for cell in (first, second) for end in ("", "-2")]
    assert files(tmp_path / "defenses") == sorted([*expected, "shift.safetensors"])
    for place in expected:
        assert note(tmp_path / "defenses" / place)["defense"]["scale"] == (0.5 if "-2/" in place else 1)
    evaluate(pictures, Shift(), Shift(scale=0.5), out=tmp_path / "numbered")
    assert files(tmp_path / "numbered" / "defenses") == ["shift#2.safetensors", "shift.safetensors"]


def test_what_is_given_for_two_networks_is_written_once(pictures: Tensor, tmp_path: Path) -> None:
    evaluate(pictures, Before(), out=tmp_path)
    given = Before(weights=str(tmp_path / "defenses" / "before.safetensors"))
    evaluate(pictures, given, model=[Line(), Line(1)], out=tmp_path / "again", train_data=None)
    assert files(tmp_path / "again" / "defenses") == ["before.safetensors"]


REFUSED = (
    "defense 'shift' learned, or would learn, on {} of the 100 images that it is evaluated on. Evaluate another split"
)


def test_what_is_evaluated_is_not_learned_on(pictures: Tensor) -> None:
    heard, labels = Heard(), Line()(pictures).argmax(1)
    for stack in (Shift(), ["median", Shift()]):
        with pytest.raises(InputError) as caught:
            evaluate(pictures, "none", stack, heard=heard, train_data=(pictures, labels))
        assert str(caught.value) == REFUSED.format(100)
    assert heard.learned == heard.said == []
    with pytest.raises(InputError, match="on 2 of the 100 images"):
        evaluate(pictures, Shift(), train_data=(pictures[98:], labels[98:]))
    once: dict[str, Any] = {"train_data": (pictures[99:], labels[99:]), "heard": heard}
    said = "defense 'shift' has 1 of the evaluated images among those that it learned on"
    for times in (1, 2):  # one in a hundred may repeat; it is said, whenever it was learned
        assert evaluate(pictures, Shift(), [Shift(), "median"], **once).cells[0].status == "VALID"
        assert heard.said.count(said) == 2 * times, "of each of the two that the config names"
    turned = pictures.flip(0), labels.flip(0)
    assert evaluate(pictures, Shift(images=150), train_data=turned).cells[0].status == "VALID"  # of these none


def test_the_training_split_of_a_data_set_is_not_evaluated() -> None:
    defense = {"name": "learned-denoiser", "images": 900}
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match=r"^defense 'learned-denoiser' .* on 200 of the 200 images that it"):
        guard.evaluate(
            net, {"name": "digits", "split": "train"}, attacks=["noise"], defenses=[defense], threat=LINF, limit=200
        )


def test_what_a_file_learned_on_is_not_evaluated(pictures: Tensor, tmp_path: Path) -> None:
    """Nor what a defense that has learned did; whatever there is to train on now."""
    evaluate(pictures, Shift(), out=tmp_path)
    file = tmp_path / "defenses" / "shift.safetensors"
    given = Shift(weights=str(file))
    for defense in (given, given.loaded(2, (1, 8, 8))):
        with pytest.raises(InputError) as caught:
            evaluate(pictures[150:], defense, train_data=None)
        assert str(caught.value) == REFUSED.format(100)
        heard, moved = Heard(), torch.cat([pictures[1:100], pictures[100:101]])
        assert evaluate(moved, defense, heard=heard, train_data=None).cells[0].status == "VALID"
        assert heard.said == ["defense 'shift' has 1 of the evaluated images among those that it learned on"]


def test_a_file_that_does_not_say_what_it_learned_on_counts_and_that_is_said(pictures: Tensor, tmp_path: Path) -> None:
    file, heard = tmp_path / "it.safetensors", Heard()
    tensors = {"weight": torch.ones(1, 1, 1, 1), "bias": torch.zeros(1)}
    for metadata in (None, {"note": '{"prints": 1}'}):
        safetensors.torch.save_file(tensors, file, metadata=metadata)
        assert evaluate(pictures, Shift(weights=str(file)), heard=heard).cells[0].status == "VALID"
    text = "defense 'shift' does not say which images it learned on; the evaluated ones may be among them"
    assert heard.said == [text, text]
    file.unlink()
    with pytest.raises(InputError, match="there is no weights file"):
        evaluate(pictures, Shift(weights=str(file)))


def test_an_attack_that_learns_by_itself_evaluates_nothing(pictures: Tensor) -> None:
    """So that a defense before it may learn on the same images."""
    labels = Line()(pictures).argmax(1)
    attack = Uap(epochs=1, refit=True)
    assert guard.fit(attack, Line(), (pictures, labels), threat=LINF, defenses=[Shift()]).learned
