"""Defenses that learn inside an evaluation: what is learned once, what is learned again, and on what."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Generator, Tensor, nn

import guard
from guard import Defense, InputError, LearnedDefense, Progress, Report, Rng, Step, ThreatModel

LINF = ThreatModel(norm="linf", epsilon=0.02)


class Gray(LearnedDefense):
    """Learns a shade under which the model answers noisy images as others."""

    name = "gray"
    epochs: int = 2
    batch_size: int = 32
    how: str = "well"

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        module = nn.Conv2d(1, 1, 1)
        with torch.no_grad():
            module.weight.fill_(1.0)
            module.bias.mul_(0.1)  # type: ignore[union-attr]
        return module

    def objective(self, step: Step, model: nn.Module) -> Tensor:
        asked.append((step, model))
        assert step.model.training
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())
        noise = 0.1 * torch.randn(step.images.shape, generator=step.generator).to(step.images)
        return (model(step.model(step.images + noise)) - model(step.images)).square().mean()

    def seen(
        self,
        module: nn.Module,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        generator: Generator,
    ) -> dict[str, Tensor]:
        assert not module.training
        assert not model.training
        judged.append((images, labels, threat, torch.rand(3, generator=generator)))
        return {"kept": model(module(images)).argmax(1) == model(images).argmax(1)}

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        restored: Tensor = self.module(images)
        return restored.clamp(0, 1)


class Alone(Gray):
    """Learns without the model."""

    name = "alone"
    against = False

    def objective(self, step: Step, model: nn.Module) -> Tensor:
        return (step.model(step.images) - step.images).square().mean()


class Blur(Defense):
    """Halves the contrast."""

    name = "blur"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return (images + 0.5) / 2


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
            asked.clear()  # of the estimate before it


asked: list[tuple[Step, nn.Module]] = []
judged: list[tuple[Tensor, Tensor, ThreatModel, Tensor]] = []


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    asked.clear()
    judged.clear()


def evaluate(model: Any, images: Tensor, labels: Tensor, heard: Progress | None = None, **settings: Any) -> Report:
    """On the first 100 images; the others may be learned on."""
    keys: dict[str, Any] = {"attacks": ["fgsm"], "threat": LINF, "train_data": (images[100:], labels[100:])}
    keys |= {"defenses": [Gray()], "progress": heard}
    return guard.evaluate(model, (images[:100], labels[:100]), **(keys | settings))


def weights(cache: Path) -> list[dict[str, Tensor]]:
    return [safetensors.torch.load(file.read_bytes()) for file in sorted((cache / "weights").glob("*.safetensors"))]


def test_it_learns_once_in_front_of_the_bare_network(
    linear: nn.Module, images: Tensor, labels: Tensor, cache: Path
) -> None:
    """Whatever stands beside it, and whatever the attacker knows; a second evaluation learns nothing."""
    heard, gray = Heard(), Gray()
    settings: dict[str, Any] = {
        "defenses": ["none", gray, [Blur(), gray]], "knowledge": ["adaptive", "oblivious"], "attacks": ["fgsm", "pgd"],
    }  # fmt: skip
    report = evaluate(linear, images, labels, heard, **settings)
    assert heard.learned == ["defense 'gray' learning in front of Linear + gray"]
    assert heard.said == ["defense 'gray' learning in front of Linear + gray (about 1 s)"]
    cells = {(cell.defense, cell.attack, cell.knowledge): cell for cell in report.cells if cell.status == "VALID"}
    assert len(cells) == 10
    adaptive, oblivious = (cells["gray", "pgd", knowledge] for knowledge in ("adaptive", "oblivious"))
    assert {candidate.name for candidate in adaptive.candidates} == {"gradient", "smoothed", "oblivious"}
    assert adaptive.robust_accuracy <= oblivious.robust_accuracy
    assert len(weights(cache)) == 1
    again = Heard()
    assert evaluate(linear, images, labels, again, no_train=True, **settings).cells == report.cells
    assert again.learned == again.said == []


def test_it_learns_on_training_images_alone_and_is_judged_by_those_held_out(
    linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    evaluate(linear, images, labels, Heard())
    met = {tuple(image.flatten().tolist()) for step, _ in asked for image in step.images}
    held = {tuple(image.flatten().tolist()) for part, *_ in judged for image in part}
    own = {tuple(image.flatten().tolist()) for image in images[100:]}
    assert (len(met), len(held)) == (180, 20)
    assert met | held == own
    (first, given, threat, draws), (_, _, _, second) = judged
    assert torch.equal(draws, second), "the draws are the same in each epoch"
    assert threat == LINF
    places = [int((images == image).flatten(1).all(1).nonzero()) for image in first]
    assert torch.equal(given, labels[places])


CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "epsilon": ({"threat": ThreatModel(norm="linf", epsilon=0.021)}, True),
    "seed": ({"seed": 1}, True),
    "epochs": ({"defenses": [Gray(epochs=1)]}, True),
    "lr": ({"defenses": [Gray(lr=0.01)]}, True),
    "parameter": ({"defenses": [Gray(how="otherwise")]}, True),
    "fewer images": ({"defenses": [Gray(images=100)]}, True),
    "precision": ({"precision": "float64"}, True),
    "data": ({"train_data": 1}, True),
    "model": ({"model": 1}, True),
    "limit": ({"limit": 30}, False),
    "batch size": ({"batch_size": 7}, False),
    "attacks": ({"attacks": ["noise"]}, False),
    "stack": ({"defenses": [[Gray(), Blur()]]}, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_what_is_learned(change: str, linear: Any, images: Tensor, labels: Tensor) -> None:
    evaluate(linear, images, labels)
    settings, again = CHANGES[change]
    if change == "data":
        other = images[100:].clone()
        other[-1, 0, 0, 0] += 0.01
        settings = {"train_data": (other, labels[100:])}
    elif change == "model":
        linear.weight.data[0, 0, 0] += 1e-3
        settings = {}
    heard = Heard()
    evaluate(linear, images, labels, heard, **settings)
    assert len(heard.learned) == again


def test_what_does_not_depend_on_the_model_learns_once_for_all(linear: Any, images: Tensor, labels: Tensor) -> None:
    class Other(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = linear(images).flip(1)
            return logits

    for defense, times in ((Alone(), 1), (Gray(), 2)):
        heard = Heard()
        evaluate([linear, Other()], images, labels, heard, defenses=[defense])
        assert len(heard.learned) == times
    assert heard.learned == [f"defense 'gray' learning in front of {name} + gray" for name in ("Linear", "Other")]
    evaluate(linear, images, labels, heard, defenses=[Alone()], threat=ThreatModel(norm="linf", epsilon=0.03))
    assert len(heard.learned) == 2  # nor does it know a threat
    evaluate(linear, images, labels, heard, defenses=[Alone()], precision="float64")
    assert heard.learned[2:] == ["defense 'alone' learning"]


def test_what_is_learned_follows_from_the_seed(
    linear: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever torch's own generators stand at, which are left as they are."""
    found = []
    for number in range(2):
        monkeypatch.setenv("GUARD_CACHE", str(tmp_path / str(number)))
        torch.manual_seed(number)
        before = torch.get_rng_state()
        report = evaluate(linear, images, labels)
        assert torch.equal(torch.get_rng_state(), before)
        found.append((weights(tmp_path / str(number)), report.cells[0].model_dump(exclude={"seconds", "candidates"})))
    (one,), (other,) = found[0][0], found[1][0]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert found[0][1] == found[1][1]


def test_it_learns_as_precisely_as_is_evaluated(linear: nn.Module, images: Tensor, labels: Tensor, cache: Path) -> None:
    evaluate(linear, images, labels, precision="float64")
    assert {step.images.dtype for step, _ in asked} == {torch.float64}
    assert {weight.dtype for _, model in asked for weight in model.parameters()} == {torch.float64}
    assert {value.dtype for value in weights(cache)[0].values()} == {torch.float64}
    assert {weight.dtype for weight in linear.parameters()} == {torch.float32}


def test_a_file_stands_for_learning(
    linear: nn.Module, images: Tensor, labels: Tensor, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `save` wrote, and a defense that has learned."""
    first = evaluate(linear, images, labels)
    module = Gray().unfitted(2, (1, 4, 4))
    module.load_state_dict(weights(cache)[0])
    fitted, file = Gray().fitted(module), tmp_path / "gray.safetensors"
    fitted.save(file)
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "empty"))
    for defense in (fitted, Gray(weights=str(file))):
        heard = Heard()
        again = evaluate(linear, images, labels, heard, defenses=[defense], train_data=None, no_train=True)
        assert heard.learned == []
        assert again.cells[0].robust_accuracy == first.cells[0].robust_accuracy
        assert again.cells[0].clean_accuracy == first.cells[0].clean_accuracy
    twice = evaluate(linear, images, labels, defenses=[Gray(weights=str(file))], precision="float64", train_data=None)
    assert twice.cells[0].status == "VALID"
    safetensors.torch.save_file({"weight": torch.zeros(1, 2, 1, 1), "bias": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="do not fit the model: 1 of another shape") as caught:
        evaluate(linear, images, labels, defenses=[Gray(weights=str(file))])
    assert "\n" not in str(caught.value)


def test_what_is_damaged_in_the_cache_is_learned_again(
    linear: nn.Module, images: Tensor, labels: Tensor, cache: Path
) -> None:
    first = evaluate(linear, images, labels)
    kept = weights(cache)[0]
    (file,) = (cache / "weights").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    heard = Heard()
    again = evaluate(linear, images, labels, heard)
    assert len(heard.learned) == 1
    assert all(torch.equal(value, kept[name]) for name, value in weights(cache)[0].items())
    assert again.cells[0].robust_accuracy == first.cells[0].robust_accuracy
