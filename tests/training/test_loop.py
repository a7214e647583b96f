"""The training loop: its order, its determinism, its optimizers, and its bad ends."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from guard import ContractError, Data, Defense, InputError, Stack, Step, ThreatModel
from guard.defense import stack
from guard.progress import Progress
from guard.recipe import Training
from guard.training.fabric import fabric
from guard.training.loop import estimate, train

CPU = torch.device("cpu")
THREAT = ThreatModel(norm="linf", epsilon=0.1)


def fit(
    model: nn.Module,
    data: Data,
    defense: Stack | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    folder: Path | None = None,
    **training: Any,
) -> nn.Module:
    settings = {"epochs": 1, "batch_size": 4, "schedule": "constant", "validation": 0} | training
    chosen = Training.model_validate(settings)
    train(
        model,
        defense or Stack(),
        data,
        THREAT,
        chosen,
        num_classes=3,
        seed=seed,
        fabric=fabric(chosen, CPU),
        progress=progress or Progress(),
        what="training it",
        folder=folder,
    )
    return model


def network(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), *middle, nn.ReLU(), nn.Linear(8, 3))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


@pytest.fixture
def data() -> Data:
    generator = Generator().manual_seed(2)
    images = torch.randint(0, 256, (13, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Data.of(images, torch.randint(0, 3, (13,), generator=generator))


class Recorded(Defense):
    """Writes down what happens."""

    name = "recorded"

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "events", [])
        object.__setattr__(self, "batches", [])

    def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        self.events.append("augment")
        self.batches.append((images.clone(), targets.clone()))
        return images / 2, F.one_hot(targets, 3).float()

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        self.events.append("adversary")
        assert model.training
        assert threat is THREAT
        assert images.max() <= 0.5
        return images + 0.1

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        self.events.append("loss")
        assert torch.equal(adversarial, images + 0.1)
        assert targets.shape == (len(images), 3)
        return F.cross_entropy(model(adversarial), targets)

    def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
        self.events.append("before")
        step.memory["updates"] = step.memory.get("updates", torch.tensor(0)) + 1
        before = weights(step.model)
        result = proceed()
        assert not torch.equal(weights(step.model), before)
        self.events.append(f"after {step.memory['updates']}")
        return result


def test_the_moments_come_in_their_order_on_every_batch(data: Data) -> None:
    recorded = Recorded()
    fit(network(), data[:8], Stack(members=(recorded,)), epochs=2)
    expected = [["augment", "adversary", "before", "loss", f"after {number}"] for number in range(1, 5)]
    assert recorded.events == [event for batch in expected for event in batch]


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [(13, 4, [4, 4, 5]), (12, 4, [4, 4, 4]), (11, 4, [4, 4, 3]), (3, 8, [3]), (3, 1, [1, 1, 1])],
)
def test_an_epoch_sees_every_image_once_and_no_batch_of_one(
    data: Data, images: int, size: int, expected: list[int]
) -> None:
    recorded = Recorded()
    fit(network(), data[:images], Stack(members=(recorded,)), batch_size=size, epochs=2)
    assert [len(targets) for _, targets in recorded.batches] == expected * 2
    for epoch in (recorded.batches[: len(expected)], recorded.batches[len(expected) :]):
        seen = torch.cat([batch for batch, _ in epoch])
        place = (seen[:, None] == data[:images].floats()[None]).flatten(2).all(2).double().argmax(1)
        assert sorted(place.tolist()) == list(range(images))
        assert torch.equal(torch.cat([targets for _, targets in epoch]), data.labels[place])


def test_batch_norm_survives_a_single_image_left_over(data: Data) -> None:
    model = fit(network(nn.BatchNorm1d(8)), data)
    assert not model.training
    assert weights(model).isfinite().all()


def test_the_order_is_another_in_each_epoch_and_for_each_seed(data: Data) -> None:
    orders = []
    for seed in (0, 1):
        recorded = Recorded()
        fit(network(), data, Stack(members=(recorded,)), batch_size=13, epochs=2, seed=seed)
        orders += [batch for batch, _ in recorded.batches]
    assert len({tuple(order.flatten().tolist()) for order in orders}) == 4


@pytest.mark.usefixtures("global_generator_untouched")
def test_the_same_seed_gives_the_same_bits(data: Data) -> None:
    start = network(nn.BatchNorm1d(8), nn.Dropout(0.5))
    torch.manual_seed(0)
    first = weights(fit(copy.deepcopy(start), data, seed=3, epochs=3))
    assert torch.equal(first, weights(fit(copy.deepcopy(start), data, seed=3, epochs=3)))
    assert not torch.equal(first, weights(fit(copy.deepcopy(start), data, seed=4, epochs=3)))


def test_dropout_follows_from_the_seed_not_from_the_global_generator(data: Data) -> None:
    start = network(nn.Dropout(0.5))
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        results.append(weights(fit(copy.deepcopy(start), data[:4])))
    assert torch.equal(*results)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_updates_are_those_of_torchs_optimizer_with_the_cyclic_rate(data: Data, optimizer: str) -> None:
    """One full batch an epoch, so that the order does not matter; ten updates, four of them on the way up."""
    model, images = network().double(), Data(data.floats().double(), data.labels, data.index)
    twin = copy.deepcopy(model)
    fit(model, images, epochs=10, batch_size=13, lr=0.2, weight_decay=0.01, optimizer=optimizer, schedule="cyclic")
    rates = [0.2 * (u + 0.5) / 4 if u < 4 else 0.2 * (9.5 - u) / 6 for u in range(10)]
    if optimizer == "sgd":
        torchs: torch.optim.Optimizer = torch.optim.SGD(
            twin.parameters(), 1.0, momentum=0.9, nesterov=True, weight_decay=0.01
        )
    else:
        torchs = torch.optim.AdamW(twin.parameters(), 1.0, weight_decay=0.01)
    for rate in rates:
        torchs.param_groups[0]["lr"] = rate
        torchs.zero_grad()
        F.cross_entropy(twin(images.images), images.labels).backward()
        torchs.step()
    torch.testing.assert_close(weights(model), weights(twin), rtol=0, atol=1e-10)


def test_a_frozen_parameter_stays(data: Data) -> None:
    model = network()
    model[1].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    fit(model, data)
    assert torch.equal(model[1].weight, before[1].weight)
    assert not torch.equal(model[-1].weight, before[-1].weight)


def test_what_cannot_be_trained_is_refused(data: Data) -> None:
    with pytest.raises(InputError, match="no parameters to train"):
        fit(network().requires_grad_(False), data)
    with pytest.raises(InputError, match="training it: there are no training images"):
        fit(network(), data[:0])


def test_a_loss_that_explodes_names_the_epoch_and_the_remedy(data: Data) -> None:
    class Bursts(Defense):
        name = "bursts"

        def loss(
            self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
        ) -> Tensor:
            large = 1e20 if float(weights(model).abs().sum()) != start else 1.0
            return F.cross_entropy(model(images), targets) * large * large

    model = network()
    start = float(weights(model).abs().sum())
    with pytest.raises(
        ContractError, match=r"training it: the loss became inf in epoch 2 of 3. Lower the learning rate, lr: 0.02 say"
    ):
        fit(model, data[:4], stack(Bursts()), epochs=3, lr=0.2)


def test_progress_counts_updates_and_ends_even_in_an_error(data: Data) -> None:
    class Log(Progress):
        def __init__(self) -> None:
            self.lines: list[object] = []

        def start(self, what: str, total: int) -> None:
            self.lines.append((what, total))

        def advance(self, units: int, what: str = "") -> None:
            self.lines.append(units)

        def finish(self) -> None:
            self.lines.append("end")

    class Fails(Defense):
        name = "fails"

        def update(self, step: Step, proceed: Callable[[], Tensor]) -> Tensor:
            raise ContractError("no")

    log = Log()
    fit(network(), data, epochs=2, progress=log)
    assert log.lines == [("training it", 6), *[1] * 6, "end"]
    log = Log()
    with pytest.raises(ContractError):
        fit(network(), data, stack(Fails()), epochs=2, progress=log)
    assert log.lines == [("training it", 6), "end"]


@pytest.mark.usefixtures("global_generator_untouched")
def test_an_estimate_scales_one_update_and_trains_nothing(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5])
    monkeypatch.setattr("guard.training.loop.time.perf_counter", lambda: next(clock))
    torch.manual_seed(0)
    model = network(nn.BatchNorm1d(8), nn.Dropout(0.5))
    torch.manual_seed(0)
    before = weights(model)
    settings = Training(epochs=6, batch_size=4)
    known = {"num_classes": 3, "fabric": fabric(settings, CPU)}
    seconds = estimate(model, Stack(), data, THREAT, settings, **known)  # type: ignore[arg-type]
    assert seconds == pytest.approx(0.5 * 6 * 13 / 4)
    assert torch.equal(weights(model), before)
    assert estimate(model, Stack(), data[:0], THREAT, settings, **known) == 0  # type: ignore[arg-type]


def test_plain_training_learns_digits() -> None:
    digits = load_digits()
    everything = Data.of(torch.tensor(digits.images / 16).float()[:, None], torch.tensor(digits.target))
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    )
    fit(model, everything[:1200], epochs=10, batch_size=32, schedule="cyclic")
    test = everything[1200:]
    assert (model(test.images).argmax(1) == test.labels).double().mean() > 0.96
