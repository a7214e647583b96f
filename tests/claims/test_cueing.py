"""What is measured on images whose shape and texture are of different classes, by networks that look at one of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Data, InputError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))


def evaluated(lines: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    settings = {"threat": {"norm": "linf", "epsilon": 0.01}, "attacks": ["noise"]}
    return {"claim": "X.", "evaluate": settings | keys, "expect": lines}


class Cued(guard.DatasetSource):
    """The upper half of an image is its shape, the lower one its texture; every fourth image has one class."""

    name = "cued"

    @property
    def num_classes(self) -> int:
        return 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 1, 8, 8

    @property
    def class_names(self) -> tuple[str, ...]:
        return "a", "b", "c"

    def textures(self, split: str) -> Tensor:
        shapes, numbers = torch.arange(60) % 3, torch.arange(60)
        return torch.where(numbers % 4 == 0, shapes, (shapes + 1) % 3)

    def load(self, split: str) -> Data:
        shapes = torch.arange(60) % 3
        images = torch.zeros(60, 1, 8, 8)
        images[torch.arange(60), 0, 0, shapes] = 1
        images[torch.arange(60), 0, 7, self.textures(split)] = 1
        return Data.of(images, shapes)


class Agreeing(Cued):
    """Whose shapes and textures are of the same class."""

    name = "agreeing"

    def textures(self, split: str) -> Tensor:
        return torch.arange(60) % 3


class Looking(nn.Module):
    """Answers with what a row of the image says; with the third class, which is no cue's, where it is asked to."""

    def __init__(self, row: int, other: bool = False) -> None:
        super().__init__()
        self.row, self.other = row, other

    def forward(self, images: Tensor) -> Tensor:
        if self.other:
            return 5 - 5 * images[:, 0, 0, :3] - 5 * images[:, 0, 7, :3]
        return 5 * images[:, 0, self.row, :3]


def test_decisions_for_a_cue() -> None:
    line = {"lower": "texture", "higher": "shape"}
    verdicts = []
    for model in (Looking(0), Looking(7), Looking(0, other=True)):
        found = guard.claim({"claim": "X.", "cues": {"dataset": Cued(), "model": model}, "expect": [line]})
        (row,) = found.comparisons
        assert found.images == 45
        verdicts.append((row.lower.value, row.higher.value, found.verdict))
    assert verdicts == [(0, 1, "supported"), (1, 0, "contradicted"), (0, 0, "undecided")]


def test_the_shape_bias_of_defended_models() -> None:
    """A blind stage turns the image over: shape becomes texture."""

    class Upside(guard.Defense):
        name = "upside-down"

        def preprocess(self, images: Tensor, rng: guard.Rng) -> Tensor:
            return images.flip(2)

    line = {"figure": "shape-bias", "lower": {"defense": "upside-down"}, "higher": {"defense": "none"}}
    keys = {"dataset": Agreeing(), "model": Looking(0), "defenses": ["none", Upside()], "attacks": ["noise"]}
    found = guard.claim(
        evaluated([line], **keys, threat={"norm": "linf", "epsilon": 0.01}) | {"cues": {"dataset": Cued()}}
    )
    (row,) = found.comparisons
    assert (row.lower.value, row.higher.value, found.verdict) == (0, 1, "supported")
    assert row.higher.name == "none"


def test_a_bias_of_no_decisions_is_undecided() -> None:
    line = {"figure": "shape-bias", "lower": {"model": "first"}, "higher": {"model": "second"}}
    models = [Looking(0, other=True), Looking(0)]
    keys = {"dataset": Agreeing(), "model": models, "attacks": ["noise"], "threat": {"norm": "linf", "epsilon": 0.01}}
    line = {"figure": "shape-bias", "lower": {"model": "Looking"}, "higher": {"model": "Looking#2"}}
    found = guard.claim(evaluated([line], **keys) | {"cues": {"dataset": Cued()}})
    assert found.comparisons[0].lower.value is None
    assert found.why.startswith("none, Looking is SUSPECT: clean accuracy 0.0% on 60 images")


class Photographed(Cued):
    """Whose sources are known: a shape photograph is bright, a texture one is bright in its middle alone."""

    name = "photographed"

    def photos(self, split: str) -> tuple[Data, Data]:
        shapes, textures = torch.ones(60, 1, 8, 8), torch.zeros(60, 1, 8, 8)
        textures[:, :, 2:6, 2:6] = 1
        return Data.of(shapes, torch.arange(60) % 3), Data.of(textures, self.textures(split))


def test_images_are_shown_beside_what_they_were_made_of() -> None:
    line = {"lower": "texture", "higher": "shape"}
    found = guard.claim({"claim": "X.", "cues": {"dataset": Photographed(), "model": Looking(0)}, "expect": [line]})
    assert len(found.pictures) == 8
    for picture in found.pictures:
        shape, texture = picture.classes
        assert shape != texture
        image, whole, patch = picture.images
        assert image[0, 0].argmax() == "abc".index(shape)
        assert whole.min() == 1
        assert patch.shape == (1, 8, 8)
        assert patch.min() == pytest.approx(1)  # the middle half of each side, and nothing of the dark around it
        assert picture.predictions[0] == shape
        assert len(picture.predictions) == 3
    bare = guard.claim({"claim": "X.", "cues": {"dataset": Cued(), "model": Looking(0)}, "expect": [line]})
    assert {len(picture.images) for picture in bare.pictures} == {1}


def test_cues_are_like_the_images_that_are_evaluated() -> None:
    line = {"figure": "shape-bias", "lower": {"defense": "none"}, "higher": {"defense": "median"}}
    settings = evaluated([line], dataset="digits", model="small-cnn", defenses=["none", "median"])
    wanted = r"cues: data set 'cued' has num_classes 3, and 'digits', which is evaluated, 10\. Evaluate cued"
    with pytest.raises(InputError, match=wanted):
        guard.claim(settings | {"cues": {"dataset": Cued()}, "seeds": [0, 1, 2]})


def test_cues_that_never_conflict_are_refused() -> None:
    line = {"lower": "texture", "higher": "shape"}
    with pytest.raises(InputError, match="shape and texture of all 60 images of data set 'agreeing' are of the same"):
        guard.claim({"claim": "X.", "cues": {"dataset": Agreeing(), "model": Looking(0)}, "expect": [line]})
