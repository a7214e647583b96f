"""Bitmaps: images and perturbations in 8 bits, to look at."""

import io

import numpy as np
from numpy.typing import NDArray


def centered(perturbation: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """A perturbation as an image: mid-grey where nothing changes, black at -`scale` and below, white at +`scale`."""
    return 0.5 + perturbation / (2 * scale)


def largest(perturbation: NDArray[np.float32]) -> float:
    """The largest change of any value, to scale by; 1 where there is none."""
    return float(np.abs(perturbation).max(initial=0)) or 1.0


def png(image: NDArray[np.float32]) -> bytes:
    """An image (C, H, W) with 1 or 3 channels (of others the first) as a PNG: 0 to 1 are the levels 0 to 255, rounded,
    and what lies outside is cut off."""
    from PIL import Image

    values = (image.clip(0, 1) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values.transpose(1, 2, 0) if len(values) == 3 else values[0]).save(file, "PNG", optimize=True)
    return file.getvalue()
