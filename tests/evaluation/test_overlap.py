"""Overlap: images are compared pixel by pixel, however they are kept."""

import pytest
import torch
from torch import Tensor

from guard import Data, InputError
from guard.evaluation.overlap import Overlap, prints


def data(count: int, seed: int = 0) -> Data:
    images = torch.randint(256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Data.of(images, torch.zeros(count))


def joined(*parts: Data) -> Data:
    return Data.of(torch.cat([part.floats() for part in parts]), torch.zeros(sum(map(len, parts))))


def shared(evaluated: Data, learned: Data) -> int:
    return Overlap(evaluated).shared(prints(learned), "attack 'x'")


def test_it_counts_evaluated_images_wherever_they_stand() -> None:
    evaluated, others = data(1000), data(600, seed=1)
    assert shared(evaluated, others) == 0
    assert shared(evaluated, joined(others, evaluated[3:10])) == 7
    assert shared(evaluated, joined(evaluated[:4], evaluated[2:6])) == 6, "an image that repeats is one image"
    assert shared(evaluated, evaluated[:0]) == 0


def test_the_order_of_images_decides_nothing() -> None:
    some = data(1000)
    assert prints(some) == prints(some[torch.arange(999, -1, -1)]) != prints(some[:999])


def test_bytes_floats_and_files_are_the_same_images_and_labels_do_not_count() -> None:
    some = data(20)

    def read(place: int) -> Tensor:
        return some.images[place]  # type: ignore[index]

    floats = Data.of(some.floats(), torch.ones(20))
    assert prints(some) == prints(floats) == prints(Data.streamed(read, (1, 4, 4), torch.zeros(20)))


def test_the_least_change_makes_another_image() -> None:
    evaluated = data(20)
    floats = evaluated.floats()
    floats[:, 0, 0, 0] = (floats[:, 0, 0, 0] - 1e-7).abs()
    assert shared(evaluated, Data.of(floats, torch.zeros(20))) == 0


@pytest.mark.parametrize(
    ("size", "count", "refused"), [(100, 1, False), (100, 2, True), (200, 2, False), (40, 1, True)]
)
def test_one_in_a_hundred_may_be_shared(size: int, count: int, refused: bool) -> None:
    """The published splits of data sets repeat some."""
    evaluated = data(size)
    learned = joined(data(300, seed=1), evaluated[:count])
    if not refused:
        assert shared(evaluated, learned) == count
        return
    with pytest.raises(InputError) as caught:
        shared(evaluated, learned)
    assert str(caught.value) == (
        f"attack 'x' learned, or would learn, on {count} of the {size} images that it is evaluated on. "
        f"Evaluate another split"
    )
