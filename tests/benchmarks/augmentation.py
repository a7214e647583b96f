"""Crop and flip of a batch at once against torchvision's transforms, an image at a time.

    python -m tests.benchmarks.augmentation [--device cuda] [--repeats N]

From pixels as they are kept (uint8, 3x32x32; PIL's own for PIL) to a float batch on the device, so that conversion,
stacking and transfer count for all alike. CPU seconds of the process; of a GPU, seconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from guard.augmentation import augmented
from tests.benchmarks.measure import heading, prepare, table

SIDE = 32
SECONDS = 0.3
"""Of a repetition, at least."""

Run = Callable[[Tensor], Tensor]
"""run(rows) -> float images (N, C, H, W) on the device."""


def guard(pixels: Tensor, device: torch.device) -> Run:
    """A batch at once."""
    generator = Generator().manual_seed(0)

    def run(rows: Tensor) -> Tensor:
        images = pixels[rows].to(device).float() / 255
        return augmented(images, rows, ("crop", "flip"), generator, 10)[0]

    return run


def kornia(pixels: Tensor, device: torch.device, cropping: str) -> Run:
    """Its modules: "slice" loops over the images, "resample" warps them."""
    from kornia.augmentation import RandomCrop, RandomHorizontalFlip

    crop = RandomCrop((SIDE, SIDE), padding=SIDE // 8, cropping_mode=cropping, resample="nearest")
    both = nn.Sequential(crop, RandomHorizontalFlip())
    return lambda rows: both(pixels[rows].to(device).float() / 255)


def torchvision(pixels: Tensor, device: torch.device, pil: bool) -> Run:
    """Its v2 transforms, as its recipes compose them."""
    from torchvision.transforms import v2

    drawn = [v2.RandomCrop(SIDE, padding=SIDE // 8), v2.RandomHorizontalFlip()]
    transform = v2.Compose([*drawn, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels] if pil else list(pixels)
    return lambda rows: torch.stack([transform(images[row]) for row in rows.tolist()]).to(device)


def timed(run: Run, rows: Tensor, device: torch.device) -> float:
    """Seconds for a batch, of as many as fill a repetition."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start, calls, seconds = clock(), 0, 0.0
    while seconds < SECONDS:
        images = run(rows)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        calls, seconds = calls + 1, clock() - start
    if images.shape != (len(rows), 3, SIDE, SIDE) or images.device.type != device.type or images.max() > 1:
        raise ValueError("a contender did not return the batch")
    return seconds / calls


def main() -> None:
    """Print a table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    prepare()
    torch.manual_seed(0)
    pixels, device = torch.randint(256, (2048, 3, SIDE, SIDE), dtype=torch.uint8), arguments.device
    runs = {
        "guard": guard(pixels, device),
        "kornia modules, crop by slices": kornia(pixels, device, "slice"),
        "kornia modules, crop by resampling": kornia(pixels, device, "resample"),
        "torchvision v2 a tensor at a time": torchvision(pixels, device, pil=False),
        "torchvision v2 a PIL image at a time": torchvision(pixels, device, pil=True),
    }
    print(heading())
    for size in (128, 512):
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(arguments.repeats + 1):  # all in turn, so that what else the machine does meets all
            for name, run in runs.items():
                seconds = timed(run, torch.randperm(len(pixels))[:size], device)
                times[name] += [seconds] if repeat else []  # the first is the warm-up
        medians = {name: statistics.median(each) for name, each in times.items()}
        print(f"\ncrop and flip on {device}, {size} images of 3x{SIDE}x{SIDE}, median of {arguments.repeats}\n")
        rows = [
            [name, f"{size / seconds:,.0f}", f"{seconds / medians['guard']:.1f}"] for name, seconds in medians.items()
        ]
        print(table(["", "images/s", "guard is faster, times"], rows), flush=True)


if __name__ == "__main__":
    main()
