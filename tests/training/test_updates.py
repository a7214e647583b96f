"""Updates against the formulas of their parts: rates, clipping, averaging, smoothing, and what they depend on."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from guard import Data, Defense, InputError, Registry, Stack, ThreatModel
from guard.defense import stack
from guard.recipe import Training
from guard.training.batches import Batches, batch_sizes, stream
from guard.training.fabric import fabric
from guard.training.schedule import learning_rate, warmed
from guard.training.updates import Updates

CPU = torch.device("cpu")
THREAT = ThreatModel(norm="linf", epsilon=0.1)


def data_of(count: int) -> Data:
    generator = Generator().manual_seed(1)
    images = torch.rand(count, 1, 2, 2, generator=generator, dtype=torch.float64)
    return Data.of(images, torch.randint(0, 3, (count,), generator=generator))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()


def updates_of(model: nn.Module, **settings: Any) -> Updates:
    training = Training.model_validate({"weight_decay": 0.0} | settings)
    return Updates(fabric(training, CPU), model, Stack(), training, 3)


def gradient(model: nn.Module, data: Data, targets: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(data.images), targets)
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, [0.4, 0.4, 0.4, 0.4, 0.4]),
        ({"schedule": "cyclic"}, [0.0, 0.2, 0.4, 0.2, 0.0]),
        ({"schedule": "multi-step"}, [0.4, 0.4, 0.4, 0.04, 0.004]),
        ({"schedule": "multi-step", "milestones": (0.1, 0.3)}, [0.4, 0.04, 0.004, 0.004, 0.004]),
        ({"schedule": "cosine"}, [0.4, 0.4 * (1 + math.cos(0.2 * math.pi)) / 2, *[0.4 * (1 + math.cos(s * math.pi)) / 2
                                                                                 for s in (0.4, 0.7)], 0.0]),
    ],
)  # fmt: skip
def test_learning_rates(settings: dict[str, Any], expected: list[float]) -> None:
    training = Training.model_validate({"lr": 0.4} | settings)
    found = [learning_rate(training, done) for done in (0, 0.2, 0.4, 0.7, 1)]
    assert found == pytest.approx(expected)


def test_the_threat_grows_to_its_own_size() -> None:
    training = Training(warmup=0.5)
    found = [warmed(THREAT, training, done) for done in (0.1, 0.25, 0.5, 0.9)]
    assert [threat.epsilon for threat in found] == pytest.approx([0.02, 0.05, 0.1, 0.1])
    assert all(threat.norm == "linf" for threat in found)
    assert warmed(THREAT, Training(), 0.001) is THREAT
    free = ThreatModel(norm="l2", epsilon=math.inf)
    assert warmed(free, training, 0.1) is free


def test_a_gradient_is_clipped_over_all_weights_together() -> None:
    data, other = data_of(6), network()
    slopes = gradient(other, data, data.labels)
    length = torch.cat([slope.flatten() for slope in slopes]).norm()
    plain = network()
    updates_of(plain, clip=0.01).update(data, 6, THREAT, seed=0, number=0, epoch=0, lr=0.5)
    nesterov = 1.9  # of the first step: 1 + momentum
    for weight, start, slope in zip(plain.parameters(), other.parameters(), slopes, strict=True):
        torch.testing.assert_close(weight, start - 0.5 * nesterov * slope * 0.01 / length, rtol=1e-3, atol=0)


def test_labels_are_smoothed() -> None:
    data, model, other = data_of(6), network(), network()
    soft = F.one_hot(data.labels, 3) * 0.7 + 0.1
    slopes = gradient(other, data, soft)
    updates_of(model, label_smoothing=0.3).update(data, 6, THREAT, seed=0, number=0, epoch=0, lr=0.5)
    for weight, start, slope in zip(model.parameters(), other.parameters(), slopes, strict=True):
        torch.testing.assert_close(weight, start - 0.95 * slope)


def test_labels_are_mixed_as_probabilities() -> None:
    """All images, of which the style stays: half of each label is its partner's."""
    data, model, other = data_of(6), network(), network()
    mixing = Registry.load().create("defense", {"name": "style-mixing", "share": 1, "strength": 0, "label_share": 0.5})
    updates = Updates(fabric(Training(), CPU), model, stack([mixing]), Training(weight_decay=0), 3)
    updates.update(data, 6, THREAT, seed=0, number=0, epoch=0, lr=0.5)
    partner = torch.randperm(6, generator=Generator().manual_seed(stream(0, 0)))
    labels = F.one_hot(data.labels, 3).double()
    slopes = gradient(other, data, (labels + labels[partner]) / 2)
    for weight, start, slope in zip(model.parameters(), other.parameters(), slopes, strict=True):
        torch.testing.assert_close(weight, start - 0.95 * slope)


def test_images_are_augmented_in_full_precision() -> None:
    seen: dict[str, bool] = {}

    class Watching(Defense):
        name = "watching"

        def augment(self, images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
            seen["augment"] = torch.is_autocast_enabled("cpu")
            return images, targets

        def loss(
            self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
        ) -> Tensor:
            seen["loss"] = torch.is_autocast_enabled("cpu")
            return super().loss(model, images, adversarial, targets, generator)

    data = Data.of(torch.rand(6, 1, 2, 2), torch.arange(6) % 3)
    training = Training(precision="bf16-mixed")
    updates = Updates(fabric(training, CPU), network().float(), stack([Watching()]), training, 3)
    updates.update(data, 6, THREAT, seed=0, number=0, epoch=0, lr=0.5)
    assert seen == {"augment": False, "loss": True}


def test_weights_are_averaged_and_the_network_goes_on_as_it_was() -> None:
    data, model = data_of(6), network()
    updates = updates_of(model, ema=0.5)
    expected = [value.detach().clone() for value in model.parameters()]
    for number in range(12):
        updates.update(data, 6, THREAT, seed=0, number=number, epoch=0, lr=0.5)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, model.parameters(), strict=True)]
    own = [value.detach().clone() for value in model.parameters()]
    with updates.averaged() as averaged:
        assert averaged is model
        for value, wanted in zip(averaged.parameters(), expected, strict=True):
            torch.testing.assert_close(value, wanted)
    assert all(torch.equal(value, before) for value, before in zip(model.parameters(), own, strict=True))
    assert not torch.equal(own[0], expected[0])


def test_an_update_depends_on_its_seed_and_not_on_those_before() -> None:
    def after(*seeds: int) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
        updates = updates_of(model)
        for seed in seeds:
            updates.update(data_of(6), 6, THREAT, seed=seed, number=0, epoch=0, lr=0.0)
        before = torch.cat([value.detach().flatten() for value in model.parameters()])
        updates = updates_of(model)
        updates.update(data_of(6), 6, THREAT, seed=5, number=0, epoch=0, lr=0.1)
        return torch.cat([value.detach().flatten() for value in model.parameters()]) - before

    assert torch.equal(after(), after(1, 2, 3))


def test_bf16_moves_the_weights_about_as_float32_does() -> None:
    moved = []
    for precision in ("32", "bf16-mixed"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        start = [value.detach().clone() for value in model.parameters()]
        data = data_of(64)
        updates = updates_of(model, precision=precision)
        updates.update(
            Data(data.images.float(), data.labels, data.index), 64, THREAT, seed=0, number=0, epoch=0, lr=0.5
        )
        assert all(value.dtype == torch.float32 for value in model.parameters())
        moved.append(torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), start, strict=True)]))
    assert not torch.equal(moved[0], moved[1])
    torch.testing.assert_close(moved[0], moved[1], rtol=0.05, atol=0.003)


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="no parameters to train"):
        updates_of(nn.Flatten())


@pytest.mark.parametrize(
    ("images", "size", "world", "expected"),
    [
        (10, 4, 1, [4, 4, 2]),
        (9, 4, 1, [4, 5]),
        (10, 4, 2, [4, 6]),
        (12, 4, 2, [4, 4, 4]),
        (3, 8, 2, [3]),
        (3, 1, 1, [1, 1, 1]),
    ],
)
def test_sizes_of_batches(images: int, size: int, world: int, expected: list[int]) -> None:
    assert batch_sizes(images, size, world) == expected


def test_processes_share_each_batch_and_its_order() -> None:
    data = data_of(23)
    whole = list(Batches(data, 6, CPU).epoch(3))
    parts = [list(Batches(data, 6, CPU, rank=rank, world=2).epoch(3)) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 4
    for (batch, size), (first, of), (second, _) in zip(whole, *parts, strict=True):
        assert len(batch) == size == of
        assert batch.index[0::2].tolist() == first.index.tolist()
        assert batch.index[1::2].tolist() == second.index.tolist()
    assert sorted(torch.cat([batch.index for batch, _ in whole]).tolist()) == list(range(23))
    assert [batch.index.tolist() for batch, _ in Batches(data, 6, CPU).epoch(3, start=2)] == [
        batch.index.tolist() for batch, _ in whole[2:]
    ]


def test_image_files_are_read_ahead_of_their_turn_in_the_same_order() -> None:
    pixels = torch.randint(0, 256, (20, 1, 2, 2), dtype=torch.uint8, generator=Generator().manual_seed(0))
    labels, read = torch.arange(20), []

    def one(place: int) -> Tensor:
        read.append(place)
        return pixels[place]

    streamed = Data.streamed(one, (1, 2, 2), labels)
    found = []
    for batch, _ in Batches(streamed, 4, CPU).epoch(1):
        found.append(batch)
        assert len(read) <= 4 * (len(found) + 2), "two batches ahead at most"
    expected = [batch for batch, _ in Batches(Data.of(pixels, labels), 4, CPU).epoch(1)]
    assert all(torch.equal(a.pixels(), b.pixels()) for a, b in zip(found, expected, strict=True))
    assert sorted(read) == list(range(20))


def test_streams_of_draws_are_their_own() -> None:
    seeds = [stream(seed, *place) for seed in (0, 1) for place in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0))]
    assert len(set(seeds)) == len(seeds)
    assert stream(3, 1, 2) == stream(3, 1, 2)


def test_bf16_holds_for_the_adversary_too(registry: Registry) -> None:
    kinds: set[torch.dtype] = set()

    class Watched(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            answer = super().forward(inputs)
            kinds.add(answer.dtype)
            return answer

    training = Training(precision="bf16-mixed")
    defense = stack(registry.create("defense", "adversarial-training"))
    data = data_of(8)
    updates = Updates(fabric(training, CPU), nn.Sequential(nn.Flatten(), Watched(4, 3)), defense, training, 3)
    batch = Data(data.images.float(), data.labels, data.index)
    updates.update(batch, 8, THREAT, seed=0, number=0, epoch=0, lr=0.1)
    assert kinds == {torch.bfloat16}
