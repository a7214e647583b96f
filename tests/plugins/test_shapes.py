"""The shapes: which cues there are, and that they are the only ones."""

import math

import pytest
import torch
from guard_plugins.datasets.outlines import OUTLINES, REACH
from guard_plugins.datasets.shapes import Cues, Shapes
from guard_plugins.datasets.textures import TEXTURES
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from guard import InputError, Registry

SHAPES = Shapes()
TRAIN, TEST, CONFLICT = (SHAPES.load(split) for split in ("train", "test", "conflict"))
LEARNED = TRAIN[:1600]


@pytest.mark.parametrize(("split", "count"), [("train", 4000), ("test", 1000), ("conflict", 1008)])
def test_a_split_is_always_the_same(split: Cues, count: int) -> None:
    data = {"train": TRAIN, "test": TEST, "conflict": CONFLICT}[split]
    assert data.images.shape == (count, 3, 32, 32)
    assert data.images.shape[1:] == SHAPES.image_shape
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == SHAPES.textures(split).dtype == torch.int64
    assert data.labels.bincount().tolist() == [count // 8] * 8
    again, other = Shapes().load(split), Shapes(seed=1).load(split)
    assert torch.equal(data.pixels(), again.pixels())
    same = (data.pixels() == other.pixels()).all(dim=(1, 2, 3))
    assert not same.any()


def test_splits_and_images_differ() -> None:
    everything = torch.cat([data.pixels() for data in (TRAIN, TEST, CONFLICT)]).flatten(1)
    assert len(everything.unique(dim=0)) == 6008


def test_classes_have_names() -> None:
    assert SHAPES.num_classes == len(set(SHAPES.class_names)) == len(TEXTURES) == 8


def test_the_texture_in_conflict_is_each_other_class_equally_often() -> None:
    pairs = torch.zeros(8, 8, dtype=torch.int64)
    pairs.index_put_((CONFLICT.labels, SHAPES.textures("conflict")), torch.tensor(1), accumulate=True)
    assert torch.equal(pairs, 18 * (1 - torch.eye(8, dtype=torch.int64)))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("correlation", [0.0, 0.125, 0.9, 1.0])
def test_the_texture_agrees_as_often_as_asked(split: Cues, correlation: float) -> None:
    textures = Shapes(correlation=correlation).textures(split)
    labels = torch.arange(len(textures)) % 8
    agreeing = float((textures == labels).double().mean())
    spread = math.sqrt(correlation * (1 - correlation) / len(labels))
    assert abs(agreeing - correlation) <= 4 * spread
    others = ((textures - labels) % 8)[textures != labels].bincount(minlength=8)[1:].double()
    assert (others - others.mean()).abs().max() <= 5 * math.sqrt(float(others.mean()))  # none is preferred


def test_the_correlation_changes_textures_alone() -> None:
    loose = Shapes(correlation=0.5)
    agreeing = loose.textures("test") == TEST.labels
    same = (loose.load("test").pixels() == TEST.pixels()).all(dim=(1, 2, 3))
    assert torch.equal(same, agreeing)
    assert torch.equal(loose.load("conflict").pixels(), CONFLICT.pixels())


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_have_one_area_and_lie_in_the_middle(name: str) -> None:
    place = torch.linspace(-2, 2, 1601, dtype=torch.float64)
    x, y = torch.meshgrid(place, place, indexing="xy")
    inside = OUTLINES[name](x, y) < 0
    assert float(inside.double().mean()) * 16 == pytest.approx(math.pi, rel=5e-3)
    assert float(x[inside].mean()) == pytest.approx(0, abs=5e-3)
    assert float(y[inside].mean()) == pytest.approx(0, abs=5e-3)
    assert float(torch.hypot(x, y)[inside].max()) <= REACH


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_are_distances_at_their_border(name: str) -> None:
    place = torch.linspace(-1.6, 1.6, 60, dtype=torch.float64)
    x, y = (axis.clone().requires_grad_() for axis in torch.meshgrid(place, place, indexing="xy"))
    slope = torch.hypot(*torch.autograd.grad(OUTLINES[name](x, y).sum(), (x, y)))
    assert float(slope.median()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_are_half_bright(name: str) -> None:
    place = torch.arange(0, 24, 0.05, dtype=torch.float64)
    u, v = torch.meshgrid(place, place, indexing="xy")
    noise = torch.rand(u.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = TEXTURES[name](u, v, noise)
    assert float(level.mean()) == pytest.approx(0.5, abs=5e-3)
    assert float(((level < 0.1) | (level > 0.9)).double().mean()) > 0.5


def mask(images: Tensor) -> Tensor:
    """Where an image is not its background, which is plain gray in the corners."""
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == corners[:, :1, :1]).all()
    return (images != images[:, :, :1, :1]).any(1)


def outline(images: Tensor) -> Tensor:
    """What is left without texture and color: how far from their middle the shape's pixels lie, and the hole's."""
    inside = mask(images).flatten(1).double()
    place = torch.cartesian_prod(torch.arange(32.0), torch.arange(32.0)).double()
    middle = (inside @ place) / inside.sum(1, keepdim=True)
    distance = (place[None] - middle[:, None]).norm(dim=2) / inside.sum(1).sqrt()[:, None]
    return torch.stack([(inside * ((distance * 12).floor() == ring)).sum(1) for ring in range(12)], 1) / inside.sum(
        1, keepdim=True
    )


def grain(images: Tensor) -> Tensor:
    """What is left without layout: how like its neighbours a pixel is, inside the shape."""
    gray = images.double().mean(1)
    inside = mask(images).double()
    middle = (gray * inside).sum((1, 2), keepdim=True) / inside.sum((1, 2), keepdim=True)
    gray = (gray - middle) * inside
    gray = gray / gray.square().mean((1, 2), keepdim=True).sqrt()
    shifts = [(down, across) for down in range(4) for across in range(-3, 4)]
    return torch.stack([(gray * gray.roll(shift, (1, 2))).mean((1, 2)) for shift in shifts], 1)


def accidents(images: Tensor) -> Tensor:
    """What should tell nothing: the place, the colors' average and the background."""
    inside = mask(images).double()[:, None]
    size = inside.sum((2, 3))
    place = torch.arange(32.0).double()
    across, down = (inside * place).sum((2, 3)) / size, (inside * place[:, None]).sum((2, 3)) / size
    color = (images.double() * inside).sum((2, 3)) / size
    return torch.cat([(across - 16) * 16, (down - 16) * 16, color, images[:, :1, 0, 0].double()], 1)


def test_place_and_color_do_not_give_the_class_away() -> None:
    for model in (KNeighborsClassifier(25), LinearDiscriminantAnalysis()):
        model.fit(accidents(LEARNED.pixels()), LEARNED.labels)
        assert model.score(accidents(TEST.pixels()), TEST.labels) < 0.18  # chance is 0.125


def test_all_shapes_are_as_large() -> None:
    covered = mask(TRAIN.pixels()).sum((1, 2)).double()
    sizes = torch.stack([covered[number::8].mean() for number in range(8)])
    assert sizes.max() / sizes.min() < 1.2  # a border's pixels count as whole ones, and a ring has much border
    assert covered.min() / (math.pi * 6.5**2) > 0.8
    assert covered.max() / (math.pi * 9**2) < 1.4


def test_outline_and_grain_do_and_are_what_each_is_said_to_be() -> None:
    labels, textures = CONFLICT.labels, SHAPES.textures("conflict")
    for feature, said, other in ((outline, labels, textures), (grain, textures, labels)):
        model = LinearDiscriminantAnalysis().fit(feature(LEARNED.pixels()), LEARNED.labels)
        assert model.score(feature(TEST.pixels()), TEST.labels) > 0.9
        assert model.score(feature(CONFLICT.pixels()), said) > 0.9
        assert model.score(feature(CONFLICT.pixels()), other) < 0.03


def test_it_is_installed_with_its_third_split() -> None:
    create = Registry.load().create
    found = create("dataset", {"name": "shapes", "split": "conflict", "correlation": 0.9})
    assert found == Shapes(split="conflict", correlation=0.9)
    assert found.model_dump() == {"name": "shapes", "split": "conflict", "correlation": 0.9, "seed": 0}
    for wrong in ({"split": "validation"}, {"correlation": 1.1}, {"correlation": -0.1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            create("dataset", {"name": "shapes"} | wrong)
