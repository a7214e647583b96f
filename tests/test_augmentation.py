"""Standard augmentation: each kind against its definition written out, its statistics, and where it draws from."""

import itertools
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from guard.augmentation import Augmentation, augmented

KINDS: tuple[Augmentation, ...] = ("crop", "flip", "cutout", "cutmix")
SHAPES = [(1, 8, 8), (3, 16, 24), (3, 9, 7)]
"""Grey and colour; square, not square, and of odd sides."""


def pictures(count: int, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, *shape, generator=Generator().manual_seed(3), dtype=dtype) * 0.9 + 0.1


def augment(images: Tensor, *kinds: Augmentation, seed: int = 0) -> Tensor:
    targets = torch.arange(len(images)) % 10
    result, kept = augmented(images, targets, kinds, Generator().manual_seed(seed), 10)
    assert kept is targets
    return result


def evenly(counts: Tensor) -> bool:
    """Whether counts are those of a uniform draw: chi-square within five standard deviations on both sides."""
    expected, freedom = counts.sum() / counts.numel(), counts.numel() - 1
    return bool(((counts - expected).square().sum() / expected - freedom).abs() < 5 * (2 * freedom) ** 0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_crop_is_a_window_of_the_padded_image(shape: tuple[int, int, int]) -> None:
    """Every window of every image is compared; exactly one is the result. They come evenly."""
    images = pictures(2000, shape)
    _, height, width = shape
    below, beside = height // 8, width // 8
    padded = torch.zeros(2000, shape[0], height + 2 * below, width + 2 * beside)
    padded[:, :, below : below + height, beside : beside + width] = images
    result = augment(images, "crop")
    places = list(itertools.product(range(2 * below + 1), range(2 * beside + 1)))
    found = torch.stack(
        [(result == padded[:, :, y : y + height, x : x + width]).flatten(1).all(1) for y, x in places], 1
    )
    assert (found.sum(1) == 1).all()
    assert evenly(found.sum(0))


def test_the_padding_is_four_of_thirty_two() -> None:
    corners = augment(torch.ones(500, 1, 32, 32), "crop")
    assert (corners[:, 0, 16] == 0).sum(1).max() == (corners[:, 0, :, 16] == 0).sum(1).max() == 4


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flip_mirrors_half_of_the_images(shape: tuple[int, int, int]) -> None:
    images = pictures(2000, shape)
    result = augment(images, "flip")
    kept = (result == images).flatten(1).all(1)
    mirrored = (result == images[..., list(range(shape[2] - 1, -1, -1))]).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert mirrored.double().mean() == pytest.approx(0.5, abs=0.045)  # four standard deviations


def test_the_same_flip_twice_is_none() -> None:
    images = pictures(50, (3, 8, 8))
    assert torch.equal(augment(augment(images, "flip", seed=4), "flip", seed=4), images)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12), (2, 7, 6)])
def test_cutout_blackens_a_square_around_any_pixel(shape: tuple[int, int, int]) -> None:
    """Every centre's clipped square is compared; exactly one is the result. They come evenly."""
    images = pictures(3000, shape)
    result = augment(images, "cutout")
    _, height, width = shape
    size = min(height, width) // 2
    squares = []
    for y, x in itertools.product(range(height), range(width)):
        square = torch.zeros(height, width, dtype=torch.bool)
        top, left = y - size // 2, x - size // 2
        square[max(top, 0) : top + size, max(left, 0) : left + size] = True
        squares.append((result == torch.where(square, 0, images)).flatten(1).all(1))
    found = torch.stack(squares, 1)
    assert (found.sum(1) == 1).all()
    assert evenly(found.sum(0))


def test_a_square_within_the_image_is_a_quarter_of_it() -> None:
    black = (augment(torch.ones(500, 3, 32, 32), "cutout") == 0).sum((2, 3))
    assert (black == black[:, :1]).all()
    assert black.max() == 16 * 16
    assert black.min() < 16 * 16  # clipped at the border


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 32), (9, 7)])
def test_a_mixed_target_says_whose_pixels_they_are(height: int, width: int) -> None:
    """Image k is constant k, so that pixels are counted by whose they are."""
    count = 40
    images = (torch.arange(count) / count)[:, None, None, None].expand(-1, 3, height, width).double()
    mixed, targets = augmented(images, torch.arange(count), ["cutmix"], Generator().manual_seed(0), count)
    owners = (mixed * count).round().long()
    assert (owners == owners[:, :1]).all()
    shares = F.one_hot(owners[:, 0].flatten(1), count).sum(1) / (height * width)
    assert ((shares > 0).sum(1) <= 2).all()
    assert targets.dtype == torch.float64
    torch.testing.assert_close(targets, shares.double(), rtol=0, atol=1e-7)
    if height * width == 256:  # shares that a float holds exactly
        assert torch.equal(targets, shares.double())


def test_a_mixed_image_holds_a_box_of_its_partner() -> None:
    """In place, of the image's proportions; each image is the partner of at most one."""
    images = pictures(30, (3, 16, 32))
    mixed, targets = augmented(images, torch.arange(30), ["cutmix"], Generator().manual_seed(1), 30)
    partners = []
    for number, (image, target) in enumerate(zip(mixed, targets, strict=True)):
        others = [other for other in target.nonzero().flatten().tolist() if other != number]
        if not others:
            assert torch.equal(image, images[number])
            continue
        partners += others
        inside = (image != images[number]).any(0)
        assert torch.equal(image, torch.where(inside, images[others[0]], images[number]))
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        assert inside.sum() == len(rows) * len(columns) == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        if rows[0] > 0 and rows[-1] < 15 and columns[0] > 0 and columns[-1] < 31:  # not clipped
            assert len(columns) in (2 * len(rows), 2 * len(rows) + 1)
    assert len(partners) == len(set(partners)) > 20


def test_a_boxs_share_is_drawn_uniformly_before_it_is_clipped() -> None:
    """The moments of the clipped share, by going through every centre and a fine grid of lambda."""
    side, grid, count = 16, 4000, 4000
    lengths = torch.zeros(side + 1, side, dtype=torch.float64)
    for size, centre in itertools.product(range(side + 1), range(side)):
        start = centre - size // 2
        lengths[size, centre] = (min(start + size, side) - max(start, 0)) / side
    sizes = (side * (1 - (torch.arange(grid) + 0.5) / grid).sqrt()).long()
    moments = [float(lengths[sizes].pow(power).mean(1).square().mean()) for power in (1, 2, 4)]
    images = torch.arange(count)[:, None, None, None].expand(-1, 1, side, side).float()
    mixed, _ = augmented(images, torch.zeros(count).long(), ["cutmix"], Generator().manual_seed(2), 2)
    share = (mixed != images).double().mean((1, 2, 3))
    for power in (1, 2):
        deviation = ((moments[power] - moments[power - 1] ** 2) / count) ** 0.5
        assert float(share.pow(power).mean()) == pytest.approx(moments[power - 1], abs=4 * deviation)


def test_probabilities_are_mixed_as_labels_are() -> None:
    images, labels = pictures(20, (3, 8, 8)), torch.arange(20) % 4
    soft = F.one_hot(labels, 4).double()
    by_labels = augmented(images, labels, ["cutmix"], Generator().manual_seed(0), 4)
    by_probabilities = augmented(images, soft, ["cutmix"], Generator().manual_seed(0), 4)
    assert torch.equal(by_labels[0], by_probabilities[0])
    assert by_probabilities[1].dtype == torch.float64
    torch.testing.assert_close(by_labels[1].double(), by_probabilities[1], rtol=0, atol=1e-7)


def test_targets_that_agree_stay_to_the_last_bit() -> None:
    """63 pixels, so that shares are rounded."""
    targets = torch.tensor([0.1, 0.2, 0.7]).expand(200, 3)
    mixed, result = augmented(pictures(200, (1, 9, 7)), targets, ["cutmix"], Generator().manual_seed(0), 3)
    assert not torch.equal(mixed, pictures(200, (1, 9, 7)))
    assert torch.equal(result, targets)


@pytest.mark.usefixtures("global_generator_untouched")
def test_all_follows_from_the_generator() -> None:
    images, labels = pictures(20, (3, 16, 16)), torch.arange(20)

    def run(generator: Generator) -> tuple[Tensor, Tensor]:
        return augmented(images, labels, KINDS, generator, 20)

    generator = Generator().manual_seed(5)
    first, second = run(generator), run(generator)
    torch.rand(3, generator=Generator().manual_seed(9))
    again = run(Generator().manual_seed(5))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("state", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generators_state_decides_nothing(kind: Augmentation, state: int) -> None:
    images, labels = pictures(20, (1, 8, 8)), torch.arange(20)
    expected = augmented(images, labels, [kind], Generator().manual_seed(5), 20)[0]
    torch.manual_seed(state)
    assert torch.equal(augmented(images, labels, [kind], Generator().manual_seed(5), 20)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_images_stay_images_of_their_dtype(kind: Augmentation, dtype: torch.dtype) -> None:
    """The draws do not depend on it either."""
    images, labels = pictures(12, (3, 8, 16)).to(dtype), torch.arange(12)
    before = images.clone()
    result, targets = augmented(images, labels, [kind], Generator().manual_seed(0), 12)
    assert (result.shape, result.dtype) == (images.shape, dtype)
    assert torch.equal(images, before)
    assert not torch.equal(result, images)
    assert targets.dtype == (dtype if kind == "cutmix" else torch.int64)
    other = augmented(images.double(), labels, [kind], Generator().manual_seed(0), 12)[0]
    assert torch.equal(result.double(), other)


@pytest.mark.parametrize("targets", [torch.arange(12), torch.full((12, 12), 1 / 12)], ids=["labels", "probabilities"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_comes_back_to_the_host(kind: Augmentation, targets: Tensor) -> None:
    """A meta tensor has no values, so that reading one, or taking it to another device, would fail."""
    images = pictures(12, (3, 8, 16)).to("meta")
    result, targets = augmented(images, targets.to("meta"), [kind], Generator().manual_seed(0), 12)
    assert (result.device.type, targets.device.type) == ("meta", "meta")
    assert result.shape == images.shape


def test_a_device_has_the_draws_of_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images, labels = pictures(32, (3, 32, 32)), torch.arange(32)
    here = augmented(images, labels, KINDS, Generator().manual_seed(0), 32)
    there = augmented(images.cuda(), labels.cuda(), KINDS, Generator().manual_seed(0), 32)
    assert there[0].is_cuda
    assert torch.equal(here[0], there[0].cpu())
    torch.testing.assert_close(here[1], there[1].cpu(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1], ("cutmix", "crop")])
def test_the_kinds_act_in_one_order_whatever_theirs_is(kinds: tuple[Augmentation, ...]) -> None:
    images, targets = pictures(10, (3, 16, 16)), torch.arange(10)
    together = augmented(images, targets, kinds, Generator().manual_seed(0), 10)
    generator = Generator().manual_seed(0)
    for kind in (kind for kind in KINDS if kind in kinds):
        images, targets = augmented(images, targets, [kind], generator, 10)
    assert torch.equal(together[0], images)
    assert torch.equal(together[1], targets)


def test_a_batch_of_one_and_no_kind_at_all() -> None:
    image, label = pictures(1, (3, 8, 8)), torch.tensor([1])
    assert augmented(image, label, [], Generator(), 3) == (image, label)
    result, target = augmented(image, label, KINDS, Generator().manual_seed(0), 3)
    assert result.shape == image.shape
    assert torch.equal(target, torch.tensor([[0.0, 1.0, 0.0]]))
