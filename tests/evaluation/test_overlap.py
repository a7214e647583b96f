"""Overlap: images are compared pixel by pixel, however they are kept."""

import pytest
import torch
from torch import Tensor

from guard import Data, InputError
from guard.evaluation.overlap import Overlap


def data(count: int, seed: int = 0) -> Data:
    images = torch.randint(256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Data.of(images, torch.zeros(count))


def joined(*parts: Data) -> Data:
    return Data.of(torch.cat([part.floats() for part in parts]), torch.zeros(sum(map(len, parts))))


def test_it_counts_evaluated_images_wherever_they_stand() -> None:
    evaluated, others = data(50), data(600, seed=1)
    overlap = Overlap(evaluated)
    assert overlap.shared(others) == 0
    assert overlap.shared(evaluated) == 50
    assert overlap.shared(joined(others, evaluated[3:10])) == 7
    assert overlap.shared(joined(evaluated[:4], evaluated[2:6])) == 6, "an image that repeats is one image"
    assert overlap.shared(evaluated[:0]) == 0


def test_bytes_and_floats_are_the_same_images_and_labels_do_not_count() -> None:
    evaluated = data(20)
    floats = Data.of(evaluated.floats(), torch.ones(20))
    assert Overlap(evaluated).shared(floats) == Overlap(floats).shared(evaluated) == 20


def test_streamed_images_are_compared_too() -> None:
    evaluated = data(20)

    def read(place: int) -> Tensor:
        return evaluated.images[place]  # type: ignore[index]

    streamed = Data.streamed(read, (1, 4, 4), torch.zeros(20))
    assert Overlap(streamed).shared(evaluated) == Overlap(evaluated).shared(streamed) == 20


def test_the_least_change_makes_another_image() -> None:
    evaluated = data(20)
    floats = evaluated.floats()
    floats[:, 0, 0, 0] = (floats[:, 0, 0, 0] + 1e-6).clamp(max=1) - 5e-7
    assert Overlap(evaluated).shared(Data.of(floats, torch.zeros(20))) == 0


@pytest.mark.parametrize(
    ("size", "shared", "refused"), [(100, 1, False), (100, 2, True), (200, 2, False), (40, 1, True)]
)
def test_one_in_a_hundred_may_be_shared(size: int, shared: int, refused: bool) -> None:
    """The published splits of data sets repeat some."""
    evaluated = data(size)
    learned = joined(data(300, seed=1), evaluated[:shared])
    assert Overlap(evaluated).shared(learned) == shared
    if not refused:
        Overlap(evaluated).refuse(learned, "attack 'x'")
        return
    with pytest.raises(InputError) as caught:
        Overlap(evaluated).refuse(learned, "attack 'x'")
    assert str(caught.value) == (
        f"attack 'x' would learn on {shared} of the {size} images that it is evaluated on. Evaluate another split"
    )
