"""A set of cue conflicts: which pairs, what is written, and what a second call makes of a folder."""

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from guard_plugins.datasets.cue_conflict import CueConflict
from torch import Tensor, nn

from guard import Data, InputError
from guard.explaining import conflict_set
from guard.explaining.conflict_set import build
from guard.explaining.conflicts import conflicts

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

COUNT = 10
UNKNOWN = {3, 8}  # labelled with a color that is not theirs


@pytest.fixture
def network() -> nn.Module:
    """Says which of three colors an image is."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Conv2d(3, 3, 1)
    nn.init.constant_(layer.bias, 0.1)
    layer.weight.data = torch.eye(3)[:, :, None, None]
    return nn.Sequential(layer, nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def photos() -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (COUNT, 3, 8, 8), generator=generator)
    colors = torch.arange(COUNT) % 3
    images[torch.arange(COUNT), colors] += 100
    wrong = torch.tensor([place in UNKNOWN for place in range(COUNT)])
    return Data.of(images.to(torch.uint8), torch.where(wrong, (colors + 1) % 3, colors))


def make(photos: Data, network: nn.Module, out: Path, pairs: int = 6, **keys: Any) -> CueConflict:
    build(photos, network, out, pairs, **({"steps": 3, "batch_size": 1} | keys))
    return CueConflict(root=str(out))


def places(photos: Data, sources: tuple[Data, Data] | None) -> list[tuple[int, int]]:
    """Which photographs each pair is of."""
    assert sources is not None

    def place(image: Tensor) -> int:
        (found,) = (photos.pixels() == image).all((1, 2, 3)).nonzero().flatten().tolist()
        return found

    return [(place(shape), place(texture)) for shape, texture in zip(*(part.pixels() for part in sources), strict=True)]


def test_the_set_is_what_conflicts_makes_of_photographs_that_the_network_knows(
    photos: Data, network: nn.Module, tmp_path: Path
) -> None:
    source = make(photos, network.train(), tmp_path / "set", batch_size=4)
    assert network.training
    data, pairs = source.load("test"), places(photos, source.photos("test"))
    shapes, textures = (torch.tensor(side) for side in zip(*pairs, strict=True))
    assert torch.equal(data.labels, photos.labels[shapes])
    assert torch.equal(source.textures("test"), photos.labels[textures])
    assert (data.labels != source.textures("test")).all()
    made = conflicts(network, photos[shapes].floats(), photos[textures].floats(), steps=3)
    levels = (255 * made - data.pixels()).abs()
    assert levels.max() <= 0.5 + 1e-3
    assert not (photos[shapes].pixels() == data.pixels()).all((1, 2, 3)).any()


def test_every_known_photograph_has_its_turn_and_no_pair_repeats(
    photos: Data, network: nn.Module, tmp_path: Path
) -> None:
    known = set(range(COUNT)) - UNKNOWN
    colors = Counter(photos.labels[place].item() for place in known)
    most = sum(len(known) - colors[photos.labels[place].item()] for place in known)
    every = places(photos, make(photos, network, tmp_path / "every", most, steps=0).photos("test"))
    assert len(set(every)) == most
    assert {shape for shape, _ in every[: len(known)]} == known == {texture for _, texture in every}
    assert len({texture for _, texture in every[: len(known)]}) > 3  # not the same one for all of a color
    fewer = places(photos, make(photos, network, tmp_path / "fewer", 5, steps=0).photos("test"))
    assert fewer == every[:5]
    assert places(photos, make(photos, network, tmp_path / "seed", 5, steps=0, seed=1).photos("test")) != fewer
    for wrong in (0, most + 1):
        message = f"pairs is {wrong}; the model knows 8 of 10 photographs, which make {most} pairs of different classes"
        with pytest.raises(InputError, match=re.escape(message)):
            build(photos, network, tmp_path / "wrong", wrong)
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(InputError, match="knows 0 of 0 photographs"):
        build(photos[:0], network, tmp_path / "none", 1)


def test_a_killed_build_goes_on(
    photos: Data, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(photos, network, tmp_path / "whole").load("test").pixels()
    calls = []

    def killed(*given: Any, **keys: Any) -> Tensor:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return conflicts(*given, **keys)

    monkeypatch.setattr(conflict_set, "conflicts", killed)
    with pytest.raises(KeyboardInterrupt):
        make(photos, network, tmp_path / "part")
    with pytest.raises(InputError, match=r"part' is half built. Build it again, or see"):
        CueConflict(root=str(tmp_path / "part")).load("test")
    resumed = make(photos, network, tmp_path / "part")
    assert len(calls) == 3 + 4  # two of six were there
    assert torch.equal(resumed.load("test").pixels(), whole)
    assert len(calls) == 7


def test_a_whole_set_asks_nothing(photos: Data, network: nn.Module, tmp_path: Path) -> None:
    make(photos, network, tmp_path, 2)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    with network.register_forward_hook(lambda *_: pytest.fail("the network was asked")):
        make(photos, network, tmp_path, 2)
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


def test_a_folder_belongs_to_its_settings(photos: Data, network: nn.Module, tmp_path: Path) -> None:
    make(photos, network, tmp_path / "set", 2)
    content = {file.name: file.read_bytes() for file in (tmp_path / "set").iterdir()}
    assert sorted(content) == sorted(
        [
            "cues.csv",
            "cues.json",
            *(f"{part}0000{number}.png" for part in ("", "shape-", "texture-") for number in "01"),
        ]
    )
    assert json.loads(content["cues.json"])["steps"] == 3
    assert next(csv.reader(content["cues.csv"].decode().splitlines())) == [
        *("file", "shape", "texture", "shape_photo", "texture_photo")
    ]
    for what, keys in {
        "pairs": {"pairs": 3},
        "seed": {"seed": 1},
        "steps": {"steps": 2},
        "weight": {"weight": 1},
    }.items():
        message = f"set' holds cue conflicts that differ in {what}. Give another folder, or remove it"
        with pytest.raises(InputError, match=re.escape(message)):
            make(photos, network, tmp_path / "set", **({"pairs": 2} | keys))
    with pytest.raises(InputError, match="differ in photos"):
        make(photos[1:], network, tmp_path / "set", 2)
    network[0].bias.data += 0.1
    with pytest.raises(InputError, match="differ in model"):
        make(photos, network, tmp_path / "set", 2)
    assert {file.name: file.read_bytes() for file in (tmp_path / "set").iterdir()} == content


def test_a_set_of_others_is_left_alone(photos: Data, network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "cues.csv").write_text("file,shape,texture\n")
    with pytest.raises(InputError, match="differ in everything"):
        make(photos, network, tmp_path)
    with pytest.raises(InputError, match=r"cannot be written: .*\. Give another folder"):
        make(photos, network, tmp_path / "cues.csv" / "deeper")
