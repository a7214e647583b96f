"""How an attack learns in the training loop: on which rows, judged by what, and what a resumed training finds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Generator, Tensor, nn

from guard import Access, ContractError, Data, Goal, LearnedAttack, Rng, Stack, Step, ThreatModel, Victim
from guard.progress import Progress
from guard.rng import seeded
from guard.training.course import Course
from guard.training.fabric import fabric
from guard.training.lesson import Attacking
from guard.training.loop import train

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

LINF = ThreatModel(norm="linf", epsilon=0.1)
COUNT = 330


class Killed(BaseException):
    """As if the process were gone."""


class Sums(nn.Module):
    """Two classes, by the sum of an image; notes the images that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(images.detach().clone())
        total = images.flatten(1).sum(1)
        return torch.stack([total, 2 - total], 1)


class Toy(LearnedAttack):
    """Learns a number; its images carry their own numbers in a pixel."""

    name = "toy"
    epochs: int = 3
    batch_size: int = 32
    scores: tuple[float, ...] = ()
    """What each epoch is judged by, in place of success."""
    asks: Literal["logits", "labels"] = "logits"
    kill: int = 0
    """The update at which the process goes, from 1."""

    @property
    def fit_access(self) -> Access:  # type: ignore[override]
        return self.asks

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        module = nn.Linear(1, 1)
        module.register_buffer("updates", torch.zeros(()))
        return module

    def update(self, step: Step, victim: Victim, goal: Goal, proceed: Callable[[], Tensor]) -> Tensor:
        seen.append((step.epoch, step.targets.tolist()))
        if len(seen) == self.kill:
            raise Killed
        step.memory["sum"] = step.memory.get("sum", torch.zeros(())) + step.images.sum()
        step.model.updates += 1  # type: ignore[operator, assignment]
        return super().update(step, victim, goal, proceed)

    def objective(self, step: Step, victim: Victim, goal: Goal) -> Tensor:
        assert step.model.training
        assert torch.equal(victim._rows, step.targets)
        assert torch.equal((step.images[:, 0, 0, 0] * 1000).round().long(), step.targets)
        assert torch.equal(goal.labels, step.targets % 2)
        assert goal.targets is not None
        assert torch.equal(goal.targets, 1 - goal.labels)
        victim.logits(step.images)
        step.note("number", step.targets.double())
        step.note("memory", step.memory["sum"].expand(len(step.targets)))
        return (step.model(step.images[:, 0, 0, :1]) - 0.5).square().mean()

    def craft(self, module: nn.Module, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        assert not module.training
        assert not torch.is_grad_enabled()
        return images + 1

    def seen(self, module: nn.Module, *rest: Any) -> dict[str, Tensor]:
        if not self.scores:
            return super().seen(module, *rest)
        _, images, *_ = rest
        epoch = int(module.updates) // 10 - 1  # type: ignore[arg-type]
        return {"score": torch.full((len(images),), self.scores[epoch]), "number": images[:, 0, 0, 0] * 1000}


seen: list[tuple[int, list[int]]] = []


@pytest.fixture
def images() -> Tensor:
    """Two pixels: a thousandth of its number; and 1 where that is even, else 0, or 0.6 in the second half."""
    numbers = torch.arange(COUNT)
    second = torch.where(numbers % 2 == 0, 1.0, torch.where(numbers > COUNT / 2, 0.6, 0.0))
    return torch.stack([numbers / 1000, second], 1)[:, None, None]


def fresh(attack: Toy) -> nn.Module:
    with seeded(0, torch.device("cpu")):
        return attack.unfitted(2, (1, 1, 2))


def lesson_of(attack: Toy, images: Tensor, model: Sums, dtype: torch.dtype = torch.float32) -> Attacking:
    rng, labels = Rng(0, torch.arange(COUNT), (1, 1, 2)), torch.arange(COUNT) % 2
    victim = Victim(model, images, rng, access=attack.fit_access, drop=False)
    return Attacking(attack, victim, Goal(labels, 1 - labels), LINF, 0, dtype)


def learn(attack: Toy, images: Tensor, **settings: Any) -> tuple[Course, nn.Module, Victim, Sums]:
    seen.clear()
    model = Sums()
    lesson = lesson_of(attack, images, model)
    module, recipe = fresh(attack), attack.training()
    course = train(
        module,
        lesson,
        lesson.numbered(Data.of(images, torch.full((COUNT,), 9))),
        LINF,
        recipe,
        num_classes=2,
        seed=3,
        fabric=fabric(recipe, torch.device("cpu")),
        progress=Progress(),
        what="learning",
        judge=lesson.judge,
        memory=lesson.memory,
        **settings,
    )
    return course, module, lesson._victim, model


def test_each_batch_meets_its_own_rows_and_each_image_is_met_once_an_epoch(images: Tensor) -> None:
    """See the assertions in `Toy.objective`."""
    course, module, victim, _ = learn(Toy(), images)
    assert not module.training
    held = sorted(set(range(COUNT)) - {row for _, rows in seen for row in rows})
    assert len(held) == 33
    for epoch in range(3):
        rows = sorted(row for number, part in seen if number == epoch for row in part)
        assert sorted([*rows, *held]) == list(range(COUNT))
    assert seen[0][1] != seen[10][1], "their order is another one in each epoch"
    assert (victim.counts.forwards == 3).all()
    mean = sum(row for epoch, rows in seen for row in rows if epoch == 0) / 297
    assert course.epochs[0].figures["number"] == pytest.approx(mean, rel=1e-6)


def test_it_is_judged_by_the_held_out_images(images: Tensor) -> None:
    """By default by the share of them that reaches the goal."""
    course, _, _, model = learn(Toy(), images)
    held = sorted(set(range(COUNT)) - {row for _, rows in seen for row in rows})
    points = model.asked[-1]
    assert torch.equal(points, LINF.project(images[held] + 1, images[held]))
    total = points.flatten(1).sum(1)
    reached = torch.where(torch.tensor(held) % 2 == 0, total < 1, total > 1)
    assert 0 < reached.double().mean() < 1
    assert [epoch.figures["goal reached"] for epoch in course.epochs] == [
        pytest.approx(float(reached.double().mean()))
    ] * 3


@pytest.mark.parametrize("asks", ["logits", "labels"])
@pytest.mark.parametrize("targeted", [False, True])
def test_it_is_judged_by_what_it_may_ask(asks: Any, targeted: bool, images: Tensor) -> None:
    """Of two classes: where the target is the label, what is right counts, and else what is wrong."""
    labels, lesson = torch.arange(COUNT) % 2, lesson_of(Toy(asks=asks), images, Sums())
    lesson._goal = Goal(labels, labels) if targeted else Goal(labels)
    judged = lesson.judge(fresh(Toy()), lesson.numbered(Data.of(images, torch.zeros(COUNT))))
    right = (LINF.project(images + 1, images).flatten(1).sum(1) > 1) == (labels == 0)
    assert 0.6 < right.double().mean() < 0.95
    assert judged == {"goal reached": pytest.approx(float((right == targeted).double().mean()))}


def test_many_held_out_images_are_judged_in_parts(images: Tensor) -> None:
    """Of different sizes, whose means do not count alike."""
    lesson = lesson_of(Toy(scores=(0.5,)), images, Sums())
    module = fresh(Toy())
    module.updates += 10  # type: ignore[operator, assignment]
    module.train()
    judged = lesson.judge(module, lesson.numbered(Data.of(images, torch.zeros(COUNT))))
    assert judged == {"score": 0.5, "number": pytest.approx((COUNT - 1) / 2)}
    assert module.training, "it is put back"


@pytest.mark.parametrize(
    ("scores", "kept"), [((0.1, 0.5, 0.2), 2), ((0.5, 0.5, 0.2), 2), ((0.9, 0.2, 0.3), 1), ((0.1, 0.2, 0.3), 3)]
)
def test_the_epoch_with_the_largest_first_figure_counts(scores: tuple[float, ...], kept: int, images: Tensor) -> None:
    """Of equals the later one."""
    course, module, _, _ = learn(Toy(scores=scores), images)
    assert course.kept == kept
    assert module.updates == 10 * kept
    assert [epoch.figures["score"] for epoch in course.epochs] == pytest.approx(scores)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("at", [1, 9, 10, 17, 30])
def test_killed_it_goes_on_with_what_it_remembers_and_has_asked(
    at: int, inside: bool, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory, its notes and the counts of queries, besides its weights."""
    if inside:
        monkeypatch.setattr("guard.training.loop._SAVE", -1.0)
        monkeypatch.setattr("guard.training.loop._EVERY", 1)
    whole, module, victim, _ = learn(Toy(), images)
    with pytest.raises(Killed):
        learn(Toy(kill=at), images, folder=tmp_path)
    again, resumed, asked, _ = learn(Toy(), images, folder=tmp_path)
    assert len(seen) == 30 - (at - 1 if inside else (at - 1) // 10 * 10)
    assert torch.equal(resumed.weight, module.weight)  # type: ignore[arg-type]
    assert torch.equal(asked.counts.forwards, victim.counts.forwards)
    assert [epoch.figures for epoch in again.epochs] == [epoch.figures for epoch in whole.epochs]


def test_it_sees_images_as_precise_as_the_victim(images: Tensor) -> None:
    lesson = lesson_of(Toy(), images, Sums(), torch.float64)
    given, numbers = lesson.augment(images, torch.arange(COUNT), Generator())
    assert given.dtype == torch.float64
    assert torch.equal(numbers, torch.arange(COUNT))
    assert not lesson.hardens
    assert lesson.adversary(nn.Identity(), images, numbers, LINF, Generator()) is images


def test_a_stack_is_a_lesson_too() -> None:
    assert not Stack().hardens


def test_an_attack_that_has_learned_is_another_one(images: Tensor) -> None:
    attack, goal = Toy(), Goal(torch.zeros(COUNT, dtype=torch.int64))
    with pytest.raises(ContractError, match="it has learned nothing yet"):
        _ = attack.module
    module = fresh(attack).train()
    fitted = attack.fitted(module)
    assert fitted.module is module
    assert not module.training
    assert not attack.learned
    assert attack.fingerprint() == ""
    before = fitted.fingerprint()
    with torch.no_grad():
        module.weight += 1  # type: ignore[operator, assignment]
    assert fitted.fingerprint() != before
    points = fitted.perturb(None, images, goal, LINF, Rng(0, torch.arange(COUNT), (1, 1, 2)))  # type: ignore[arg-type]
    assert torch.equal(points, LINF.project(images + 1, images))
    assert fitted.cost(10) == (0, 0)
