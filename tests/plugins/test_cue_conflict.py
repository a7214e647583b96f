"""The data set of cue conflicts: what is read from a folder, and what is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guard_plugins.datasets.cue_conflict import CueConflict
from PIL import Image
from torch import nn

import guard
from guard import InputError, Registry
from guard.explaining.cues import shape_bias

HEADER = "file,shape,texture,shape_photo,texture_photo"
ROWS = ["b.png,2,0,deep/s.png,t.png", "a.png,1,4,t.png,deep/s.png", "c.png,0,2,t.png,t.png"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of 6 x 8, each of one level, and two photographs; one image is listed by nobody."""
    (tmp_path / "deep").mkdir()
    for level, name in enumerate(["a.png", "b.png", "c.png", "deep/s.png", "t.png", "alone.png"]):
        Image.fromarray(np.full((6, 8, 3), level, np.uint8)).save(tmp_path / name)
    (tmp_path / "cues.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    return tmp_path


def levels(data: guard.Data) -> list[int]:
    return data.pixels()[:, 0, 0, 0].tolist()


def test_both_cues_and_both_photographs_are_read(root: Path) -> None:
    source = CueConflict(root=str(root))
    assert Registry.load().create("dataset", {"name": "cue-conflict", "root": str(root)}) == source
    data = source.load("test")
    assert (levels(data), data.labels.tolist()) == ([1, 0, 2], [2, 1, 0])  # in the order of the csv
    textures = source.textures("test")
    assert (textures.tolist(), textures.dtype) == ([0, 4, 2], torch.int64)
    photos = source.photos("test")
    assert photos is not None
    assert [(levels(part), part.labels.tolist()) for part in photos] == [([3, 4, 4], [2, 1, 0]), ([4, 3, 4], [0, 4, 2])]
    assert (source.num_classes, source.image_shape) == (5, (3, 6, 8))  # of the textures' classes, too
    assert not isinstance(data.images, torch.Tensor)


def test_outputs_and_framing_are_as_given(root: Path) -> None:
    source = CueConflict(root=str(root), num_outputs=9, resize=12, crop=4)
    assert (source.num_classes, source.image_shape, source.framing) == (9, (3, 4, 4), (12, 4))
    photos = source.photos("test")
    assert photos is not None
    assert source.load("test").images.shape == photos[0].images.shape == photos[1].images.shape == (3, 3, 4, 4)
    with pytest.raises(InputError, match="class '4' is output 4; there are 4 outputs"):
        CueConflict(root=str(root), num_outputs=4).load("test")


@pytest.mark.parametrize("header", ["file,shape,texture", "file,shape,texture,shape_photo"])
def test_photographs_may_be_missing(header: str, root: Path) -> None:
    (root / "cues.csv").write_text(f"{header}\na.png,1,2,t.png\n")
    source = CueConflict(root=str(root))
    assert source.photos("test") is None
    assert source.load("test").labels.tolist() == [1]


def test_shape_bias_is_measured_on_it(root: Path) -> None:
    """A network that knows images by their level decides for shape, for texture and for neither."""

    class ByLevel(nn.Module):
        answers = {1: 2, 0: 4, 2: 3}

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = [self.answers[round(255 * level)] for level in images[:, 0, 0, 0].tolist()]
            return nn.functional.one_hot(torch.tensor(found), 5).float()

    source = CueConflict(root=str(root))
    data = source.load("test")
    found = shape_bias(ByLevel()(data.floats()).argmax(1), data.labels, source.textures("test"))
    assert (found.shape_decisions, found.texture_decisions, found.images) == (1, 1, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "cues.csv' has the columns path, label. Its first line must name file, shape, texture"),
        ("", "cues.csv' has the columns (none)"),
        (HEADER + "\n", "cues.csv' lists no images. Add lines below file,shape,texture"),
        (HEADER + "\nno.png,1,2,t.png,t.png\n", "cues.csv', line 2: there is no file"),
        (HEADER + "\na.png,1,2,t.png\n", "cues.csv', line 2: texture_photo is missing. Write it"),
        (HEADER + "\na.png,1,,t.png,t.png\n", "cues.csv', line 2: texture is missing. Write it"),
        (HEADER + "\na.png,1,cat,t.png,t.png\n", "label 'cat' is no whole number below a million"),
        (HEADER + "\na.png,1,-2,t.png,t.png\n", "class '-2' is output -2"),
    ],
)
def test_what_is_no_such_set_is_refused(text: str, message: str, root: Path) -> None:
    (root / "cues.csv").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        CueConflict(root=str(root)).load("test")
    assert "\n" not in str(caught.value)


def test_folders_without_one_and_other_splits_are_refused(root: Path) -> None:
    def refused(message: str, what: Any) -> None:
        with pytest.raises(InputError, match=re.escape(message)):
            what()

    source = CueConflict(root=str(root))
    refused("dataset 'cue-conflict' has no train images, only a test split. Train on", lambda: source.load("train"))
    refused("split", lambda: CueConflict(root=str(root), split="train"))  # type: ignore[arg-type]
    (root / "cues.csv").unlink()
    refused(f"'{root}' holds no cues.csv. Give root: FOLDER, or see", lambda: source.load("test"))
    (root / "cues.json").write_text("{}")
    refused(f"'{root}' is half built. Build it again, or see", lambda: source.image_shape)
    (root / "cues.csv").write_bytes(b"file,shape,texture\n\xff\xfe,1,2\n")
    refused("cues.csv' cannot be read: ", lambda: source.load("test"))
