"""Attacks that learn inside an evaluation: what is learned once, what is learned again, and what may not be."""

import re
from typing import Any

import pytest
import torch
from guard_plugins.attacks.advgan import AdvGan
from guard_plugins.attacks.universal import Uap
from torch import Tensor, nn

import guard
from guard import Access, Defense, Goal, InputError, LearnedAttack, Progress, Report, Rng, Step, ThreatModel, Victim

LINF = ThreatModel(norm="linf", epsilon=0.02)


class Turns(Defense):
    """Negatives."""

    name = "turns"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return 1 - images


class Blur(Defense):
    """Halves the contrast."""

    name = "blur"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return (images + 0.5) / 2


class Shift(LearnedAttack):
    """Learns how much to add to each pixel, or fails at it."""

    name = "shift"
    how: str = "well"

    @property
    def fit_access(self) -> Access:  # type: ignore[override]
        return "logits" if self.how == "greedy" else "gradients"

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        return nn.Conv2d(1, 1, 1)

    def objective(self, step: Step, victim: Victim, goal: Goal) -> Tensor:
        if self.how == "crash" and step.epoch == 1:
            raise ValueError("no luck")
        if self.how == "careless":
            gradient, _, _ = victim.gradient(step.images, goal)
            return (step.model(step.images) - gradient.nan_to_num()).square().mean()
        logits = victim.module(step.images + step.model(step.images))
        factor = float("nan") if self.how == "nan" and step.epoch == 1 else 1.0
        return factor * (logits.gather(1, goal.labels[:, None]) - logits.sum(1, keepdim=True) / 2).mean()

    def craft(self, module: nn.Module, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        return images + module(images)


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


def evaluate(model: Any, images: Tensor, labels: Tensor, heard: Progress | None = None, **settings: Any) -> Report:
    """On the first 100 images; the others may be learned on."""
    keys: dict[str, Any] = {"attacks": [Uap(epochs=1)], "threat": LINF, "train_data": (images[100:], labels[100:])}
    return guard.evaluate(model, (images[:100], labels[:100]), **(keys | {"progress": heard} | settings))


def test_it_learns_once_and_attacks_all_defenses_with_that(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    """On the undefended model, whichever defenses are asked for, and whatever the attacker knows."""
    heard = Heard()
    settings: dict[str, Any] = {"defenses": [Turns(), "none", Blur()], "knowledge": ["adaptive", "oblivious"]}
    report = evaluate(linear, images, labels, heard, **settings)
    assert heard.learned == ["attack 'uap' learning against Linear"]
    assert heard.said == ["to learn first: uap against Linear (about 1 s)"]
    cells = [cell for cell in report.cells if cell.status != "NOT_APPLICABLE"]
    assert len(cells) == 5
    assert all(cell.fit == cells[0].fit and cell.fit is not None for cell in cells)
    assert {candidate.name for cell in cells for candidate in cell.candidates} == {"learned", "oblivious"}
    assert all(len(cell.candidates) == 1 and cell.forwards_per_image == 0 for cell in cells)
    fit = cells[0].fit
    assert fit is not None
    assert (fit.images, fit.held_out, fit.shared, fit.model) == (180, 20, 0, "Linear")
    assert cells[0].fit_forwards == fit.forwards == 2 * 200
    assert cells[0].fit_backwards == fit.backwards == 180
    again = Heard()
    assert evaluate(linear, images, labels, again, **settings).cells == report.cells
    assert again.learned == again.said == []


def test_refit_learns_against_each_defense(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    """What leads to a class leads away from it in negatives, unless it was learned against them."""
    heard = Heard()
    settings: dict[str, Any] = {"defenses": ["none", Turns()], "goal": {"targets": 1}}
    plain, own = (
        evaluate(linear, images, labels, heard, attacks=[Uap(epochs=3, batch_size=20, refit=refit)], **settings).cells
        for refit in (False, True)
    )
    assert heard.learned == [f"attack 'uap' learning against Linear{defense}" for defense in ("", " + turns")]
    assert own[0].attack_success_rate == plain[0].attack_success_rate > 0.01
    assert own[1].attack_success_rate > 0.01 > plain[1].attack_success_rate == 0
    assert [candidate.name for candidate in own[1].candidates] == ["learned", "oblivious"]
    assert own[1].fit is not None
    assert own[1].fit.model == "Linear + turns"
    assert own[1].fit_forwards == own[0].fit_forwards + own[1].fit.forwards


CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "epsilon": ({"threat": ThreatModel(norm="linf", epsilon=0.021)}, True),
    "norm": ({"threat": ThreatModel(norm="l2", epsilon=0.02)}, True),
    "seed": ({"seed": 1}, True),
    "goal": ({"goal": {"targets": 1}}, True),
    "epochs": ({"attacks": [Uap(epochs=2)]}, True),
    "lr": ({"attacks": [Uap(epochs=1, lr=0.2)]}, True),
    "parameter": ({"attacks": [Uap(epochs=1, by="deepfool", images=20)]}, True),
    "precision": ({"precision": "float64"}, True),
    "data": ({"train_data": 1}, True),
    "model": ({"model": 1}, True),
    "refit": ({"attacks": [Uap(epochs=1, refit=True)]}, False),
    "label": ({"attacks": [{"name": "uap", "epochs": 1, "as": "other"}]}, False),
    "limit": ({"limit": 30}, False),
    "batch size": ({"batch_size": 7}, False),
    "other attacks": ({"attacks": ["fgsm", Uap(epochs=1)]}, False),
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


def test_of_several_threats_each_is_learned_for(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    """And for each goal and seed."""
    heard = Heard()
    threats = [LINF, ThreatModel(norm="linf", epsilon=0.05)]
    evaluate(linear, images, labels, heard, threat=threats, seed=[0, 1], goal=["untargeted", {"targets": "next"}])
    assert len(heard.learned) == 8


def test_what_is_evaluated_is_not_learned_on(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    heard = Heard()
    with pytest.raises(InputError) as caught:
        evaluate(linear, images, labels, heard, train_data=(images, labels))
    assert str(caught.value) == (
        "attack 'uap' learned, or would learn, on 100 of the 100 images that it is evaluated on. Evaluate another split"
    )
    assert heard.learned == []
    report = evaluate(linear, images, labels, train_data=(images[99:], labels[99:]))  # one in a hundred may repeat
    assert report.cells[0].fit is not None
    assert report.cells[0].fit.shared == 1
    moved = evaluate(linear, images, labels, train_data=(images[100:], labels[100:])).cells[0].fit
    assert moved is not None
    assert moved.shared == 0
    again = guard.evaluate(
        linear, (images[1:101], labels[1:101]), attacks=[Uap(epochs=1)], threat=LINF,
        train_data=(images[100:], labels[100:]), no_train=True,
    ).cells[0].fit  # fmt: skip
    assert again is not None
    assert again.shared == 1, "of the images that are evaluated now, whenever it learned"
    with pytest.raises(InputError, match="on 2 of the 100 images"):
        evaluate(linear, images, labels, train_data=(images[98:], labels[98:]))
    last = Uap(epochs=1, images=150)  # of these none is evaluated
    turned = images.flip(0), labels.flip(0)
    assert evaluate(linear, images, labels, attacks=[last], train_data=turned).cells[0].status == "VALID"


def test_the_training_split_of_a_data_set_is_not_evaluated() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match="would learn, on 200 of the 200 images that it is evaluated on"):
        guard.evaluate(net, {"name": "digits", "split": "train"}, attacks=["uap"], threat=LINF, limit=200)


def test_learning_may_be_forbidden_and_needs_images(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(linear, images, labels, no_train=True)
    text = "attack 'uap' must learn, and --no-train forbids it. Give weights, or allow training"
    assert str(caught.value) == text
    with pytest.raises(InputError) as caught:
        evaluate(linear, images, labels, train_data=None)
    assert str(caught.value) == "attack 'uap' needs training images. Give train_data=(images, labels)"
    evaluate(linear, images, labels)
    evaluate(linear, images, labels, no_train=True)  # it has learned by now


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("well", "VALID", ""),
        ("crash", "INVALID", "attack 'shift' learning against Linear raised ValueError: no luck (test_fitting.py:"),
        ("nan", "INVALID", "attack 'shift' learning against Linear: the loss became nan in epoch 2 of 3. "),
        ("greedy", "INVALID", "it declares access = 'logits' and asked the victim for gradients"),
    ],
)
def test_an_attack_that_fails_at_learning_is_invalid_and_the_others_go_on(
    how: str, status: str, reason: str, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    attacks = [Shift(how=how, epochs=3, lr=0.05), "fgsm"]
    learned, other = evaluate(linear, images, labels, attacks=attacks).cells
    assert (learned.status, other.status) == (status, "VALID")
    assert learned.reason.startswith(reason)
    assert "\n" not in learned.reason
    assert (learned.robust_accuracy is None) == (status == "INVALID")


def test_gradients_that_are_no_numbers_are_invalid(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Hollow(nn.Module):
        """Its gradient is NaN where a pixel is 1/2, and what it answers is not."""

        def forward(self, x: Tensor) -> Tensor:
            value = x.flatten(1)[:, :1] - 0.5
            return linear(x) + 0 * torch.where(value == 0, 0 * value, 1 / value)

    images[200:250, 0, 0, 0] = 0.5
    careless = Shift(how="careless", epochs=2)
    for _ in range(2):  # nor does what was learned of them count later
        cells = evaluate(Hollow(), images, labels, attacks=[Uap(epochs=1), careless, "noise"]).cells
        assert [cell.status for cell in cells] == ["INVALID", "INVALID", "VALID"]
        assert cells[1].robust_accuracy is None
        assert cells[0].reason.startswith("attack 'uap' learning against Hollow")
        text = r"attack 'shift' learning against Hollow met gradients with NaN or infinity for 4\d of 200 images"
        assert re.fullmatch(text, cells[1].reason)


def test_a_model_that_only_answers_is_learned_of_by_what_only_asks() -> None:
    """Labels are enough for a substitute, and not for what follows gradients."""
    generator = torch.Generator().manual_seed(0)
    images, weight = torch.rand(90, 1, 8, 8, generator=generator), torch.randn(64, generator=generator)

    def answers(x: Any) -> Any:
        return ((x.reshape(len(x), -1) - 0.5) @ weight.numpy() > 0).astype("int64")

    labels, model = torch.from_numpy(answers(images.numpy())), guard.model(answers, access="labels", num_classes=2)
    data = {"train_data": (images[30:], labels[30:]), "threat": ThreatModel(norm="linf", epsilon=0.3)}
    tiny: dict[str, Any] = {"epochs": 2, "distil_epochs": 1, "batch_size": 32, "distillation": "static"}
    attacks = [AdvGan(answers="labels", **tiny), AdvGan(**tiny), "uap", "atn"]
    cells = guard.evaluate(model, (images[:30], labels[:30]), attacks=attacks, **data).cells
    assert [cell.status for cell in cells] == ["VALID"] + 3 * ["NOT_APPLICABLE"]
    assert cells[0].fit_forwards == 60
    assert cells[0].fit_backwards == 0
    assert cells[1].reason == (
        "attack 'advgan#2' needs logits to learn, and the model gives labels only. Use one that asks for less"
    )
    assert "needs gradients to learn, and the model gives labels only" in cells[2].reason
    with pytest.raises(InputError, match="needs gradients to learn"):
        guard.evaluate(model, (images[:30], labels[:30]), attacks=["uap"], **data)


@pytest.mark.parametrize("targets", ["random", "least-likely"])
def test_it_learns_one_aim(targets: str, linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    learned, other = evaluate(linear, images, labels, attacks=["uap", "fgsm"], goal={"targets": targets}).cells
    assert (learned.status, other.status) == ("NOT_APPLICABLE", "VALID")
    assert learned.reason == (
        f"attack 'uap' learns one aim for all images, and the goal is {targets}. Give goal: {{targets: CLASS}}, or next"
    )


@pytest.mark.parametrize("goal", [{"targets": 0}, {"targets": 1}, {"targets": "next"}])
def test_it_learns_towards_its_target(goal: Any, linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Of a linear model all that epsilon allows: along its weight, against it, or as the labels of the most ask for."""
    attack = Uap(epochs=3, batch_size=10)
    labels[100:] = 1  # whose next class is 0
    fitted = guard.fit(attack, linear, (images[100:], labels[100:]), threat=LINF, goal=goal)
    way = 1 if goal["targets"] == 1 else -1
    picture = fitted.picture(fitted.module)
    assert picture is not None
    torch.testing.assert_close(picture, way * 0.02 * linear.weight.detach().sign(), atol=1e-7, rtol=0)  # type: ignore[operator]
