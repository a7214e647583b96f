"""Random resizing and padding against torch's own, image by image."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from guard import Defense, InputError, Rng

Make = Callable[..., Defense]


def boxes(results: Tensor) -> list[tuple[int, int, int, int]]:
    """Top, left, height and width of what is not black."""
    found = []
    for result in results:
        rows, columns = (result.amax(0) > 0).nonzero().T
        top, left = int(rows.min()), int(columns.min())
        found.append((top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1))
    return found


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 12)])
@pytest.mark.parametrize(
    "shares", [{}, {"low": 0.5, "high": 0.9}, {"low": 1.0, "high": 1.4, "padded": 1.5}], ids=["default", "down", "up"]
)
def test_each_image_is_torchs_resized_and_padded(
    make: Make, make_rng: Callable[..., Rng], shape: tuple[int, int, int], shares: dict[str, float]
) -> None:
    images = 0.1 + 0.9 * torch.rand(40, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = make("resize-pad", **shares).preprocess(images, make_rng(images))
    full = tuple(round(shares.get("padded", 1.0) * side) for side in shape[1:])
    assert results.shape == (40, shape[0], *full)
    for image, result, (top, left, height, width) in zip(images, results, boxes(results), strict=True):
        resized = F.interpolate(image[None], (height, width), mode="bilinear", align_corners=False)[0]
        expected = F.pad(resized, (left, full[1] - width - left, top, full[0] - height - top))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_sizes_and_places_are_drawn_evenly(make: Make, make_rng: Callable[..., Rng]) -> None:
    images = torch.ones(6000, 1, 10, 10)
    found = boxes(make("resize-pad", low=0.8).preprocess(images, make_rng(images)))
    sizes = Counter(height for *_, height, _ in found)
    assert sorted(sizes) == [8, 9, 10]
    assert all(abs(count - 2000) < 200 for count in sizes.values())
    for place in (0, 1):
        places = Counter(box[place] for box in found if box[2] == 8)
        assert sorted(places) == [0, 1, 2]
        assert all(abs(count - sizes[8] / 3) < 120 for count in places.values())
    assert all(height == width for *_, height, width in found)
    places = Counter(box[:2] for box in found if box[2] == 8)
    assert len(places) == 9, "the two sides are drawn on their own"


def test_the_papers_sizes(make: Make, make_rng: Callable[..., Rng]) -> None:
    images = torch.ones(12, 1, 299, 299)
    results = make("resize-pad", low=1, high=1.107, padded=1.107).preprocess(images, make_rng(images))
    assert results.shape == (12, 1, 331, 331)
    assert {299 <= height <= 331 for *_, height, _ in boxes(results)} == {True}


def test_shares_out_of_order_are_refused(make: Make) -> None:
    for shares in ({"low": 0.9, "high": 0.8}, {"high": 1.2}):
        with pytest.raises(InputError, match=r"'resize-pad'.*write them so that low <= high <= padded"):
            make("resize-pad", **shares)
