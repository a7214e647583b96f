"""Standard augmentation: a whole training batch at once, on its device."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Augmentation = Literal["crop", "flip", "cutout", "cutmix"]


def augmented(
    images: Tensor, targets: Tensor, kinds: Sequence[Augmentation], generator: Generator, num_classes: int
) -> tuple[Tensor, Tensor]:
    """A batch after each of `kinds`: crop, flip, cutout, cutmix, in that order whatever theirs is.

    So the shares of mixed targets are those of what is seen.

    `images`: float (N, C, H, W) in [0, 1], which they stay in. `targets`: int64 (N,), or probabilities (N, K); cutmix
    returns the latter. Every image has its own draws, all of them from `generator`, a CPU's, so that they are the same
    on every device.

    crop: a random window of the image padded with zeros, by an eighth of its side (4 of 32), rounded down.
    flip: left to right, with probability 0.5.
    cutout: a square around a random pixel becomes black, always (DeVries and Taylor, 2017). Its side is half the
    shorter side of the image (16 of 32, theirs for CIFAR-10), and it is clipped at the border. Their images are
    normalized, so that their zero is the mean.
    cutmix: a box around a random pixel comes from another image, always, and so does its share of the target (Yun et
    al., ICCV 2019). The partners are a permutation of the batch, lambda ~ Beta(1, 1), the box has the image's
    proportions and the share 1 - lambda of its area until it is clipped; the target's share is what then remains of it,
    to the pixel. The authors' code draws one box for the whole batch and leaves half of the batches of CIFAR as they
    are.
    """
    if "crop" in kinds:
        images = _cropped(images, generator)
    if "flip" in kinds:
        images = _flipped(images, generator)
    if "cutout" in kinds:
        images = _cut_out(images, generator)
    if "cutmix" in kinds:
        images, targets = _cut_mixed(images, targets, generator, num_classes)
    return images, targets


def _cropped(images: Tensor, generator: Generator) -> Tensor:
    """Not kornia's: on a CPU (3x32x32, 128 at once) its slices, an image at a time, take about twice as long as this,
    its translation, by resampling, about 4 times."""
    count, _, height, width = images.shape
    below, beside = height // 8, width // 8
    top = torch.randint(2 * below + 1, (count,), generator=generator)
    left = torch.randint(2 * beside + 1, (count,), generator=generator)
    padded = F.pad(images, (beside, beside, below, below))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (N, C, top, left, H, W)
    places = torch.stack([torch.arange(count), top, left]).to(images.device)
    return windows[places[0], :, places[1], places[2]]


def _flipped(images: Tensor, generator: Generator) -> Tensor:
    from kornia.geometry.transform import hflip

    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], hflip(images), images)


def _cut_out(images: Tensor, generator: Generator) -> Tensor:
    side = torch.full((len(images),), min(images.shape[2:]) // 2)
    inside, _ = _boxes(images, side, side, generator)
    return images.masked_fill(inside, 0)


def _cut_mixed(images: Tensor, targets: Tensor, generator: Generator, num_classes: int) -> tuple[Tensor, Tensor]:
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    root = torch.rand(len(images), generator=generator).sqrt()  # 1 - lambda is uniform, as lambda ~ Beta(1, 1) is
    height, width = ((root * side).long() for side in images.shape[2:])
    inside, share = _boxes(images, height, width, generator)
    if targets.ndim == 1:
        targets = F.one_hot(targets, num_classes).to(images.dtype)
    share = share.to(targets.dtype).to(targets.device)[:, None]
    # lerp, for it leaves the target of two images of one class as it is, to the last bit
    return torch.where(inside, images[partner], images), targets.lerp(targets[partner], share)


def _boxes(images: Tensor, height: Tensor, width: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Boxes of these sizes, int64 (N,), around random pixels: bool (N, 1, H, W), and the share float64 (N,), on the
    CPU, of the image that each covers."""
    from kornia.geometry.bbox import bbox_generator, bbox_to_mask

    rows, columns = images.shape[2:]
    top, height = _clipped(rows, height, generator)
    left, width = _clipped(columns, width, generator)
    corners = bbox_generator(left, top, width, height).float().to(images.device)
    return bbox_to_mask(corners, columns, rows).bool()[:, None], (height * width).double() / (rows * columns)


def _clipped(side: int, size: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Start and length of intervals of these sizes around random places of a side: of an even size, one more place
    before the centre than behind it."""
    start = torch.randint(side, size.shape, generator=generator) - size // 2
    first = start.clamp(min=0)
    return first, (start + size).clamp(max=side) - first
