"""The two shuffles, and what networks make of them."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from guard import InputError, Rng
from guard.explaining import shuffles
from guard.explaining.shuffles import agreement, blocks, pixels

Shuffle = Callable[[Tensor, int, Rng], Tensor]
SHUFFLES = [blocks, pixels]


def rng(images: Tensor, seed: int = 0) -> Rng:
    return Rng(seed, torch.arange(len(images)), tuple(images.shape[1:]))


def numbered(count: int, height: int = 8, width: int = 12, channels: int = 3) -> Tensor:
    """Images each of whose values is another one: a pixel's number in its image, and a thousand for its channel."""
    number = torch.arange(height * width).view(1, 1, height, width)
    return (number + 1000 * torch.arange(channels).view(1, -1, 1, 1)).expand(count, -1, -1, -1).clone()


def cut(image: Tensor, side: int) -> list[Tensor]:
    """The blocks of one image, straight."""
    rows, columns = range(0, image.shape[1], side), range(0, image.shape[2], side)
    return [image[:, y : y + side, x : x + side] for y in rows for x in columns]


@pytest.mark.parametrize("side", [1, 2, 4])
def test_blocks_change_places_and_stay_as_they_are(side: int) -> None:
    images = numbered(3)
    for image, shuffled in zip(images, blocks(images, side, rng(images)), strict=True):
        before, after = ([piece.flatten().tolist() for piece in cut(each, side)] for each in (image, shuffled))
        assert sorted(before) == sorted(after)
        assert before != after


@pytest.mark.parametrize("side", [2, 4])
def test_pixels_stay_in_their_block_with_their_color(side: int) -> None:
    images = numbered(3)
    orders = set()
    for image, shuffled in zip(images, pixels(images, side, rng(images)), strict=True):
        for before, after in zip(cut(image, side), cut(shuffled, side), strict=True):
            colors = [piece.flatten(1).T.tolist() for piece in (before, after)]
            assert sorted(colors[0]) == sorted(colors[1])
            orders.add(tuple(colors[0].index(color) for color in colors[1]))
    assert len(orders) == 18 if side == 4 else len(orders) > 18  # an order of its own for each block and image


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_every_order_is_equally_likely(shuffle: Shuffle) -> None:
    side = 1 if shuffle is blocks else 2
    images = numbered(4800, 2, 2, 1)
    orders, counts = shuffle(images, side, rng(images)).flatten(1).unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert float(((counts - 200) ** 2 / 200).sum()) < 49.7  # chi-squared of 23 degrees of freedom, 1 in 1,000


def test_nothing_moves_where_there_is_nothing_to_move() -> None:
    images = numbered(4, 8, 8)
    assert torch.equal(blocks(images, 8, rng(images)), images)
    assert torch.equal(pixels(images, 1, rng(images)), images)
    assert not torch.equal(blocks(images, 1, rng(images)), images)
    assert not torch.equal(pixels(images, 8, rng(images)), images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_values_are_kept(shuffle: Shuffle, dtype: torch.dtype) -> None:
    images = torch.randint(256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = images.clone()
    found = shuffle(images, 2, rng(images))
    assert found.dtype == dtype
    assert torch.equal(images, before)
    assert torch.equal(found.flatten(2).sort(2).values, images.flatten(2).sort(2).values)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_an_image_is_shuffled_the_same_in_any_batch(shuffle: Shuffle) -> None:
    images = numbered(7)
    keep = torch.tensor([5, 2, 6])
    assert torch.equal(shuffle(images, 2, rng(images))[keep], shuffle(images[keep], 2, rng(images)[keep]))
    assert not torch.equal(shuffle(images, 2, rng(images)), shuffle(images, 2, rng(images, seed=1)))


@pytest.mark.parametrize("side", [3, 8, 12, 0, -2])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_side_that_does_not_fit_is_refused(shuffle: Shuffle, side: int) -> None:
    images = numbered(1)
    message = f"blocks of side {side} do not tile images of 8 x 12. Give a side of 1, 2, 4"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        shuffle(images, side, rng(images))


class Says(nn.Module):
    """A network that answers 1 where a figure of the image is above 0, and 0 elsewhere."""

    def __init__(self, figure: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.figure = figure

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        figure = self.figure(images)
        return torch.stack([torch.zeros_like(figure), figure], 1)


def color(images: Tensor) -> Tensor:
    return (images[:, 0] - images[:, 1]).sum((1, 2))


def layout(images: Tensor) -> Tensor:
    return (images[:, :, :4] - images[:, :, 4:]).sum((1, 2, 3))


def texture(images: Tensor) -> Tensor:
    return (images[..., ::2] - images[..., 1::2]).sum((1, 2, 3))


IMAGES = torch.randint(256, (200, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 256  # their sums are exact


def test_a_network_of_color_layout_or_texture() -> None:
    by_color = agreement(Says(color), IMAGES, [1, 2, 4, 8])
    assert [(row.side, row.blocks, row.pixels, row.p_value) for row in by_color] == [(k, 1, 1, 1) for k in (1, 2, 4, 8)]
    (by_layout,) = agreement(Says(layout), IMAGES, [4])
    assert by_layout.pixels == 1  # inside its half, none of them matters
    assert 0.4 < by_layout.blocks < 0.9
    (by_texture,) = agreement(Says(texture), IMAGES, [4])
    assert by_texture.blocks == 1
    assert 0.4 < by_texture.pixels < 0.6
    assert max(by_layout.p_value, by_texture.p_value) < 1e-10


def test_the_figures_are_those_of_their_formulas() -> None:
    def figure(images: Tensor) -> Tensor:
        return layout(images) + texture(images)

    found = agreement(Says(figure), IMAGES, [4, 2], seed=3)
    for row, side in zip(found, [4, 2], strict=True):
        draws = rng(IMAGES, 3).fold(side)
        before = figure(IMAGES) > 0
        moved = (figure(blocks(IMAGES, side, draws)) > 0) == before
        mixed = (figure(pixels(IMAGES, side, draws)) > 0) == before
        one, other = int((moved & ~mixed).sum()), int((mixed & ~moved).sum())
        assert min(one, other) > 0
        tail = sum(math.comb(one + other, k) for k in range(min(one, other) + 1)) / 2 ** (one + other)
        assert row.p_value == pytest.approx(min(1, 2 * tail), rel=1e-9)  # McNemar's exact test
        z = 1.959963984540054 / math.sqrt(200)
        for share, interval, same in (
            (row.blocks, row.blocks_interval, moved),
            (row.pixels, row.pixels_interval, mixed),
        ):
            assert share == float(same.double().mean())
            middle, half = share + z**2 / 2, z * math.sqrt(share * (1 - share) + z**2 / 4)  # Wilson's
            assert interval == pytest.approx(((middle - half) / (1 + z**2), (middle + half) / (1 + z**2)), abs=1e-9)


def test_what_happens_to_an_image_follows_from_seed_and_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Says(lambda images: layout(images) + texture(images))
    (alone,) = agreement(model, IMAGES, [2])
    assert agreement(model, IMAGES, [4, 2, 1])[1] == alone
    assert agreement(model, IMAGES, [2], seed=1) != [alone]
    monkeypatch.setattr(shuffles, "_BATCH", 7)
    assert agreement(model, IMAGES, [2]) == [alone]


def test_the_model_is_left_as_it_was() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, Says(color)).train()
    agreement(model, IMAGES[:4], [4])
    assert model.training
    assert model[1].training
    assert norm.num_batches_tracked == 0
    assert norm.weight.requires_grad


def test_there_must_be_images() -> None:
    with pytest.raises(InputError, match="there are none"):
        agreement(Says(color), IMAGES[:0], [4])


def test_a_model_that_draws_repeats_and_leaves_the_generator() -> None:
    class Dropping(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.dropout(images, 0.5, training=True).flatten(1)[:, :10]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = agreement(Dropping(), IMAGES, [4])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert agreement(Dropping(), IMAGES, [4]) == first
