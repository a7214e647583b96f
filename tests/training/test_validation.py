"""Validation on held-out images, and the alarm of catastrophic overfitting."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from guard import Data, Defense, Stack, Step, ThreatModel
from guard.progress import Progress
from guard.recipe import Training
from guard.training.course import Course
from guard.training.fabric import fabric
from guard.training.loop import train
from guard.training.record import Epoch
from guard.training.validation import Accuracies, collapsed, hold_out, validate

CPU = torch.device("cpu")
LINF = ThreatModel(norm="linf", epsilon=0.1)


def data_of(count: int, seed: int = 0) -> Data:
    generator = Generator().manual_seed(seed)
    images = torch.rand(count, 1, 4, 4, generator=generator)
    return Data.of(images, torch.randint(0, 2, (count,), generator=generator))


def test_a_share_is_held_out_and_the_rest_learned_on() -> None:
    data = data_of(50)
    learned, held = hold_out(data, 0.2, seed=1)
    assert (len(learned), len(held)) == (40, 10)
    assert sorted([*learned.index.tolist(), *held.index.tolist()]) == list(range(50))
    for part in (learned, held):
        assert torch.equal(part.images, data.images[part.index])
        assert part.index.tolist() == sorted(part.index.tolist())
    assert held.index.tolist() == hold_out(data, 0.2, seed=1)[1].index.tolist()
    assert held.index.tolist() != hold_out(data, 0.2, seed=2)[1].index.tolist()
    assert [len(part) for part in hold_out(data, 0, 0)] == [50, 0]
    assert [len(part) for part in hold_out(data[:1], 0.5, 0)] == [1, 0]
    assert [len(part) for part in hold_out(data[:2], 0.9, 0)] == [1, 1]


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.08), ("l1", 0.15)])
def test_accuracies_are_those_of_a_linear_model_in_closed_form(
    norm: Any, epsilon: float, linear: Callable[..., nn.Module]
) -> None:
    """Its margin falls by epsilon times the dual norm of its slope; away from the borders of the range."""
    generator = Generator().manual_seed(3)
    images = 0.5 + 0.4 * (torch.rand(400, 1, 4, 4, generator=generator) - 0.5)
    slope = torch.randn(16, generator=generator)
    model = linear(torch.stack([torch.zeros(16), slope]), torch.tensor([0.0, -float(slope.sum()) / 2]))
    margins = (images.flatten(1) - 0.5) @ slope
    labels = (margins > 0).long()
    labels[:40] = 1 - labels[:40]
    dual = {"linf": slope.abs().sum(), "l2": slope.norm(), "l1": slope.abs().max()}[norm]
    stands = (margins.abs() > epsilon * dual) & (torch.arange(400) >= 40)
    seen = validate(model, Data.of(images, labels), ThreatModel(norm=norm, epsilon=epsilon), 0, CPU)
    assert seen.clean == 0.9
    assert seen.fgsm == pytest.approx(float(stands.float().mean()), abs=0.006)
    assert seen.pgd is not None
    assert seen.pgd == pytest.approx(float(stands.float().mean()), abs=0.03)
    assert 0.1 < seen.pgd < 0.8


def test_without_a_bound_there_is_clean_accuracy_alone(linear: Callable[..., nn.Module]) -> None:
    model = linear(torch.zeros(2, 16), torch.tensor([1.0, 0.0]))
    data = data_of(20)
    seen = validate(model, data, ThreatModel(norm="l2", epsilon=math.inf), 0, CPU)
    assert seen == (int((data.labels == 0).sum()) / 20, None, None)


def test_at_most_a_thousand_are_held_out_of_all_classes() -> None:
    labels = torch.arange(10).repeat_interleave(500)
    learned, held = hold_out(Data.of(torch.zeros(5000, 1, 1, 1), labels), 0.5, seed=0)
    assert (len(learned), len(held)) == (4000, 1000)
    assert torch.bincount(held.labels).min() > 70


def test_it_leaves_the_network_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    validate(model, data_of(300), LINF, 0, CPU)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def epoch(fgsm: float, pgd: float) -> Epoch:
    return Epoch(epoch=1, lr=0.1, loss=1.0, clean=0.9, fgsm=fgsm, pgd=pgd, seconds=1)


@pytest.mark.parametrize(
    ("before", "now", "alarm"),
    [  # clean, FGSM, PGD; the first five measured on MNIST at 0.3
        ([], (0.88, 0.701, 0.059), True),  # fgsm-rs with its draw clamped, after one epoch
        ([(0.5, 0.1)], (0.962, 0.778, 0.034), True),  # fgsm without a draw, after two
        ([], (0.92, 0.599, 0.163), False),  # fgsm-rs, after one, two and three
        ([(0.599, 0.163)], (0.961, 0.746, 0.423), False),
        ([(0.746, 0.423)], (0.963, 0.831, 0.678), False),
        ([(0.322, 0.016)], (0.973, 0.611, 0.105), False),  # PGD's, while its epsilon grows
        ([(0.925, 0.739)], (0.95, 0.642, 0.013), True),  # fgsm-rs, which went back and did it again
        ([(0.699, 0.222)], (0.972, 0.943, 0.191), True),  # fgsm-rs of a third seed, which never recovered
        ([(0.705, 0.117)], (0.976, 0.759, 0.181), False),  # fgsm-rs of another seed, on its way
        ([(0.5, 0.4)], (0.95, 0.55, 0.15), True),  # one step rose, several fell
        ([(0.5, 0.4)], (0.95, 0.3, 0.15), False),  # both fell: the network is worse, and does not fool itself
        ([(0.5, 0.4), (0.5, 0.1)], (0.95, 0.5, 0.15), True),  # compared with the best, not with the last
        ([], (0.126, 0.126, 0.02), False),  # one that has not learned yet
    ],
)
def test_the_alarm_is_about_one_step_and_several(
    before: list[tuple[float, float]], now: tuple[float, float, float], alarm: bool
) -> None:
    found = collapsed([epoch(*figures) for figures in before], Accuracies(*now))
    assert (found is not None) == alarm
    if found:
        assert found.startswith(f"catastrophic overfitting: FGSM {100 * now[1]:.1f}, PGD {100 * now[2]:.1f}")


def test_without_robust_accuracy_there_is_no_alarm() -> None:
    assert collapsed([epoch(0.5, 0.4)], Accuracies(0.9, None, None)) is None


class Scripted(Defense):
    """Counts updates; its loss learns."""

    name = "scripted"

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        rates.append(step.epoch)
        return proceed()

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        return F.cross_entropy(model(images), targets)


rates: list[int] = []


def fit(
    monkeypatch: pytest.MonkeyPatch,
    seen: list[tuple[float, float, float]],
    defense: Stack | None = None,
    **settings: Any,
) -> tuple[Course, nn.Module, list[Tensor], list[str]]:
    """Train while validation says what is listed; also the weights after each validation."""
    script, weights, said = iter(seen), [], []

    def validated(model: nn.Module, *rest: Any, **named: Any) -> Accuracies:
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
        return Accuracies(*next(script))

    class Says(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr("guard.training.loop.validate", validated)
    training = Training.model_validate({"batch_size": 10, "lr": 0.5, "validation": 0.5} | settings)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    course = train(
        model, Stack(members=(Scripted(),)) if defense is None else defense, data_of(40), LINF, training,
        num_classes=2, seed=0, fabric=fabric(training, CPU), progress=Says(), what="training it",
    )  # fmt: skip
    return course, model, weights, said


def kept(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_the_most_robust_epoch_is_kept_and_of_equals_the_later(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [(0.5, 0.4, 0.3), (0.6, 0.5, 0.4), (0.9, 0.5, 0.4), (0.9, 0.7, 0.3)]
    course, model, weights, said = fit(monkeypatch, seen, epochs=4)
    assert (course.kept, said) == (3, [])
    assert torch.equal(kept(model), weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert [(each.epoch, each.clean, each.fgsm, each.pgd) for each in course.epochs] == [
        (number, *figures) for number, figures in enumerate(seen, 1)
    ]


def test_where_nothing_acts_in_training_the_most_accurate_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [(0.5, 0.4, 0.4), (0.9, 0.8, 0.1), (0.7, 0.7, 0.3)]
    course, model, weights, said = fit(monkeypatch, seen, Stack(), epochs=3)
    assert (course.kept, said) == (2, [])
    assert torch.equal(kept(model), weights[1])


def test_the_last_epoch_is_kept_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    course, model, weights, _ = fit(monkeypatch, [(0.5, 0.4, 0.3), (0.4, 0.3, 0.2)], epochs=2, keep="last")
    assert course.kept == 2
    assert torch.equal(kept(model), weights[1])


def test_catastrophic_overfitting_stops_a_training_and_the_epoch_before_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    course, model, weights, said = fit(monkeypatch, [(0.9, 0.5, 0.4), (0.9, 0.9, 0.01)], epochs=9, keep="last")
    assert (len(course.epochs), course.kept, course.stopped) == (2, 1, True)
    assert torch.equal(kept(model), weights[0])
    event = "epoch 2: catastrophic overfitting: FGSM 90.0, PGD 1.0 (PGD was 40.0); stopped, and kept epoch 1"
    assert course.epochs[1].events == (event,)
    assert said == [f"training it, {event}"]


def test_one_that_overfits_at_once_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    course, model, weights, said = fit(monkeypatch, [(0.9, 0.9, 0.01)], epochs=9)
    assert (course.kept, course.stopped) == (None, True)
    assert torch.equal(kept(model), weights[0])
    assert said[0].endswith("FGSM 90.0, PGD 1.0; stopped")


def test_it_goes_back_and_on_at_half_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates.clear()
    bad = (0.9, 0.9, 0.01)
    seen = [(0.9, 0.5, 0.4), bad, (0.9, 0.5, 0.45), (0.9, 0.5, 0.46)]
    course, _, weights, said = fit(monkeypatch, seen, epochs=3, overfitting="roll-back", schedule="constant")
    assert rates == [0, 0, 1, 1, 1, 1, 2, 2], "the second epoch is done twice"
    assert [each.lr for each in course.epochs] == [0.5, 0.25, 0.25]
    assert (course.kept, course.stopped, len(course.epochs)) == (3, False, 3)
    assert course.epochs[1].events == tuple(line.removeprefix("training it, ") for line in said)
    assert said[0].endswith("; went back to the start of epoch 2, at half the learning rate")
    assert not torch.equal(weights[1], weights[2]), "other draws, another rate"


def test_it_goes_back_three_times_and_then_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    course, model, weights, said = fit(
        monkeypatch, [(0.9, 0.5, 0.4), *[(0.9, 0.9, 0.01)] * 4], epochs=9, overfitting="roll-back"
    )
    assert (course.returns, course.stopped, course.kept, len(said)) == (3, True, 1, 4)
    assert torch.equal(kept(model), weights[0])


def test_overfitting_may_be_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    course, _, _, said = fit(monkeypatch, [(0.9, 0.9, 0.01)] * 3, epochs=3, overfitting="ignore")
    assert (len(course.epochs), said) == (3, [])
    course, _, _, said = fit(monkeypatch, [(0.9, 0.9, 0.01)] * 3, Stack(), epochs=3)
    assert (len(course.epochs), said) == (3, []), "of a network that nobody trains for robustness nothing else is said"
