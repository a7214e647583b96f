"""Bands: which coefficients of the two-dimensional DCT a perturbation may have, equally many in every band."""

from typing import Literal

from torch import Tensor

from guard import InputError, Rng

Band = Literal["low", "mid", "high", "random"]


def side_of(dimension: int | None, images: Tensor, name: str) -> int:
    """The side n of a band: `dimension`, or where it is None a quarter of the images' shorter side, rounded up.

    Raises InputError in the name of that attack where n exceeds a side of images (N, C, H, W).
    """
    height, width = images.shape[-2:]
    shorter = min(height, width)
    if dimension is None:
        return -(-shorter // 4)
    if dimension > shorter:
        raise InputError(
            f"dimension of attack '{name}' is {dimension}, and the images have {height} x {width} coefficients. "
            f"Give at most {shorter}"
        )
    return dimension


def mask(band: Band, side: int, images: Tensor, rng: Rng) -> Tensor:
    """1 at the `side` x `side` coefficients of each image that a band keeps, else 0, shape (N, 1, H, W).

    low: the top left square; high: the bottom right one; mid: the one in the middle; random: as many anywhere, drawn
    for each image from `rng`. All channels keep the same.
    """
    count, (height, width) = len(images), images.shape[-2:]
    kept = images.new_zeros(count, 1, height, width)
    if band == "random":
        order = rng.uniform(shape=(height * width,)).argsort(dim=1, stable=True)
        return kept.flatten(1).scatter_(1, order[:, : side**2], 1).view_as(kept)
    top, left = ({"low": 0, "mid": room // 2, "high": room}[band] for room in (height - side, width - side))
    kept[..., top : top + side, left : left + side] = 1
    return kept
