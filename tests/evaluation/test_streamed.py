"""Images that are read when they are needed: as few as there must be, with the figures of the same images in memory."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guard_plugins.datasets.arrays import Arrays
from guard_plugins.datasets.folder import ImageFolder
from guard_plugins.datasets.photographs import Photographs
from PIL import Image
from torch import Tensor, nn

import guard
from guard import Data, InputError, Report, ThreatModel
from guard.keys import data_key
from guard.report.tables import tables
from guard.source import Streamed

LINF = ThreatModel(norm="linf", epsilon=0.02)


class Bright(nn.Module):
    """Tells how bright an image is: class 1 above a half."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        score = (images - 0.5).flatten(1).mean(1) * self.weight
        rest = [score.new_full((len(score),), -9.0)] * (self.classes - 2)
        return torch.stack([-score, score, *rest], 1)


class Sized(Bright):
    """Remembers the sizes of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, ...]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.add(tuple(images.shape[2:]))
        return super().forward(images)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images of 10 x 10, the dark ones class 0; every tenth is in the wrong class."""
    root = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for number in range(300):
        bright = number % 2
        low = generator.integers(100 + 19 * bright, 117 + 19 * bright)
        pixels = generator.integers(low, low + 20, (10, 10, 3), dtype=np.uint8)
        name = ("dark", "light")[bright ^ (number % 10 == 0)]
        (root / name).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / name / f"{number:03}.png")
    return root


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each image was decoded."""
    counts, decode = Counter[int](), Photographs.__call__

    def counted(self: Photographs, position: int) -> Tensor:
        counts[position] += 1
        return decode(self, position)

    monkeypatch.setattr(Photographs, "__call__", counted)
    return counts


def evaluate(data: Any, model: Any = None, **settings: Any) -> Report:
    keys = {"attacks": ["fgsm", {"name": "pgd", "steps": 4}, "noise"], "threat": LINF} | settings
    return guard.evaluate(model or Bright(), data, **keys)


def figures(report: Report) -> list[dict[str, Any]]:
    return [cell.model_dump(exclude={"seconds", "candidates", "dataset"}) for cell in report.cells]


def test_the_figures_are_those_of_arrays(photographs: Path, tmp_path: Path) -> None:
    source = ImageFolder(path=str(photographs))
    data = source.load("test")
    np.savez(tmp_path / "a.npz", images=data.pixels().numpy(), labels=data.labels.numpy())
    streamed = evaluate(source)
    held = evaluate(Arrays(path=str(tmp_path / "a.npz")))
    assert figures(streamed) == figures(held)
    assert streamed.cells[0].clean_accuracy == 0.9
    assert 0 < streamed.cells[0].robust_accuracy < 0.9  # type: ignore[operator]
    assert streamed.run["computed_shards"] == 6
    assert held.run["cached_shards"] == 6, "the same images have the same key"
    shown, same = (next(iter(report.pictures.values())) for report in (streamed, held))
    assert np.array_equal(shown.clean, same.clean)
    assert shown.labels == ("dark",) * 8


def test_each_shard_is_decoded_once(
    photographs: Path, decoded: Counter[int], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    sizes, read = [], Streamed.tensor

    def watched(self: Streamed) -> Tensor:
        sizes.append(len(self))
        return read(self)

    monkeypatch.setattr(Streamed, "tensor", watched)
    evaluate({"name": "folder", "path": str(photographs)}, defenses=["none", "bit-depth"])
    assert sorted(sizes) == [1, 8, 16, 44, 256]  # one to check, a few to probe and to show, and two shards
    assert [decoded[place] for place in range(300)] == [4] + [3] * 7 + [2] * 8 + [1] * 284


def test_a_second_run_computes_nothing_and_a_changed_file_one_shard(photographs: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    for file in photographs.rglob("*.png"):
        (copied / file.parent.name).mkdir(parents=True, exist_ok=True)
        (copied / file.parent.name / file.name).write_bytes(file.read_bytes())
    first, second = (evaluate(ImageFolder(path=str(path))) for path in (photographs, copied))
    assert (second.run["computed_shards"], second.run["cached_shards"]) == (0, 6)
    assert second.cells == first.cells
    last = max(copied.rglob("*.png"), key=lambda file: (file.parent.name, file.name))
    Image.fromarray(np.full((10, 10, 3), 200, np.uint8)).save(last)
    third = evaluate(ImageFolder(path=str(copied)))
    assert (third.run["computed_shards"], third.run["cached_shards"]) == (3, 3)
    assert third.cells[0].key != first.cells[0].key


def test_a_run_that_broke_off_goes_on(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = evaluate(ImageFolder(path=str(photographs)), seed=1)
    decode = Photographs.__call__

    def torn(self: Photographs, position: int) -> Tensor:
        if position == 280:
            raise KeyboardInterrupt
        return decode(self, position)

    with monkeypatch.context() as patch:
        patch.setattr(Photographs, "__call__", torn)
        with pytest.raises(KeyboardInterrupt):
            evaluate(ImageFolder(path=str(photographs)))
    resumed = evaluate(ImageFolder(path=str(photographs)))
    assert (resumed.run["computed_shards"], resumed.run["cached_shards"]) == (3, 3)
    assert resumed.cells[0].robust_accuracy == undisturbed.cells[0].robust_accuracy  # fgsm draws nothing


def test_a_file_that_breaks_later_is_named(photographs: Path, tmp_path: Path) -> None:
    for name in ("dark/a.png", "light/b.png"):
        broken = tmp_path / "torn" / name
        broken.parent.mkdir(parents=True)
        broken.write_bytes(next(photographs.rglob("*.png")).read_bytes())
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(InputError, match=re.escape(f"image '{broken}' cannot be read")) as caught:
        evaluate(ImageFolder(path=str(tmp_path / "torn")))
    assert "\n" not in str(caught.value)


def test_a_limit_takes_a_balanced_sample_and_says_which(photographs: Path) -> None:
    source = ImageFolder(path=str(photographs))
    one, same, other = (evaluate(source, limit=40, seed=seed) for seed in (3, 3, 4))
    indices = one.run["indices"]
    assert indices == same.run["indices"] != other.run["indices"]
    assert source.load("test").labels[indices].sum() == 20
    assert one.cells[0].images == 40
    assert same.run["computed_shards"] == 0
    more = evaluate(source, limit=299, seed=3, attacks=["fgsm"])
    assert more.run["indices"][:40] == indices
    assert "indices" not in evaluate(source, limit=300, attacks=["fgsm"]).run
    assert "indices" not in evaluate("digits", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), limit=9).run


def test_the_models_size_is_the_images(photographs: Path, tmp_path: Path) -> None:
    source = ImageFolder(path=str(photographs))
    net = Sized()
    model = guard.model(net, resize=8, crop=6)
    report = evaluate(source, model)
    assert net.sizes == {(10, 10), (6, 6)} - {(10, 10)}, "it is given what it asks for, and once"
    assert (model.resize, model.crop) == (8, 6)
    assert (report.config["dataset"]["resize"], report.config["dataset"]["crop"]) == (8, 6)
    assert report.run["image_shape"] == [3, 6, 6]
    said = "Epsilon is measured on images of 3 x 6 x 6, after resize 8 and crop 6."
    assert [table.notes[0] for table in tables(report)] == [said]
    given = evaluate(ImageFolder(path=str(photographs), resize=8, crop=6))
    assert [cell.robust_accuracy for cell in given.cells] == [cell.robust_accuracy for cell in report.cells]
    other = Sized()
    evaluate(ImageFolder(path=str(photographs), resize=10, crop=9), guard.model(other, resize=8, crop=6))
    assert other.sizes == {(6, 6)}, "images of another size than its own it resizes itself"
    with pytest.raises(InputError, match=r"asks for resize 8 and crop 6, 'Sized' for crop 4, and epsilon is measured"):
        evaluate(source, [model, guard.model(Sized(), crop=4)])
    both = evaluate(source, [model, Bright()])
    assert both.run["image_shape"] == [3, 6, 6]


def test_images_in_memory_keep_their_size(photographs: Path) -> None:
    data, net = ImageFolder(path=str(photographs), resize=8, crop=6).load("test"), Sized()
    report = evaluate((data.floats(), data.labels), guard.model(net, resize=8, crop=6), attacks=["fgsm"])
    assert report.run["image_shape"] == [3, 6, 6]
    assert not any("Epsilon is measured" in note for table in tables(report) for note in table.notes)


def test_chance_points_at_the_labels(photographs: Path) -> None:
    source = ImageFolder(path=str(photographs), classes={"dark": 1, "light": 0})
    cell = evaluate(source, attacks=["fgsm"]).cells[0]
    assert cell.status == "SUSPECT"
    assert cell.reason.endswith(
        "is not clearly above chance (50.0%). Check classes:, label_offset: and num_outputs: of the data set and the "
        "normalisation"
    )


def test_few_right_answers_among_many_classes_are_suspect() -> None:
    images, labels = torch.full((100, 1, 2, 2), 0.6), torch.full((100,), 500)
    for right, status in ((4, "SUSPECT"), (5, "VALID")):
        labels[:right] = 1
        cell = evaluate((images, labels), Bright(1000), attacks=["fgsm"]).cells[0]
        assert (cell.clean_accuracy, cell.status) == (right / 100, status)


def test_a_network_trains_on_a_folder(photographs: Path, tmp_path: Path) -> None:
    root = tmp_path / "both"
    root.mkdir()
    for split in ("train", "test"):
        (root / split).symlink_to(photographs)
    settings: dict[str, Any] = {"training": {"epochs": 1, "lr": 0.01}, "attacks": ["fgsm"], "limit": 20}
    report = evaluate(ImageFolder(path=str(root), crop=8), "small-cnn", **settings)
    assert report.cells[0].images == 20
    again = evaluate(ImageFolder(path=str(root), crop=8), "small-cnn", **settings, no_train=True)
    assert again.cells == report.cells


def test_the_key_of_streamed_images_is_that_of_the_same_in_memory() -> None:
    images = torch.randint(0, 256, (600, 3, 2, 2), dtype=torch.uint8)
    labels, peak = torch.arange(600) % 7, []

    def stream(read: Callable[[int], Tensor]) -> Data:
        return Data.streamed(read, (3, 2, 2), labels)

    streamed = stream(lambda place: images[place])
    tensor = Streamed.tensor
    assert data_key(streamed) == data_key(Data.of(images, labels))
    assert data_key(streamed[:599]) != data_key(streamed)
    assert data_key(stream(lambda place: images[min(place, 598)])) != data_key(streamed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Streamed, "tensor", lambda self: peak.append(len(self)) or tensor(self))
        data_key(streamed)
    assert peak == [256, 256, 88]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.full((3, 2, 2), 0.7), r"torch.float32 of \(3, 2, 2\), not uint8 of \(3, 2, 2\)"),
        (torch.zeros(1, 2, 2, dtype=torch.uint8), r"torch.uint8 of \(1, 2, 2\), not"),
    ],
)
def test_a_reader_that_gives_something_else_is_an_error(image: Tensor, said: str) -> None:
    data = Data.streamed(lambda position: image, (3, 2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match=rf"^image 0 of the data set is {said}"):
        data.loaded()
