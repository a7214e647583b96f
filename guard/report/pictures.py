"""Pictures of a cell as data: URIs: the clean image, the adversarial one, what was added, and its energy spectrum."""

import base64
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from guard.evaluation import bitmap
from guard.evaluation.result import Cell, Pictures
from guard.report.spectra import Spectrum, low, picture, spectrum
from guard.spectrum import energy
from guard.threat import amount

SHOWN = 6
"""Pictures of each cell on the page."""
_LARGEST = 128  # pixels of a side; larger images are thinned, or a page of photographs would not open


@dataclass(frozen=True)
class Triple:
    """One image and its adversary."""

    label: str
    clean_prediction: str
    prediction: str
    low: float | None
    """Share of the perturbation's energy in its lowest frequencies; None where it is zero."""
    clean: str
    """A PNG as a data: URI, as the three others."""
    adversarial: str
    perturbation: str
    spectrum: str


@dataclass(frozen=True)
class Gallery:
    """A few images of a cell."""

    triples: tuple[Triple, ...]
    scale: str
    """What black and white of a perturbation mean."""
    spectrum: Spectrum | None
    """Of the perturbations shown; None where all are zero."""


def gallery(cell: Cell, pictures: Pictures) -> Gallery:
    """The first pictures of a cell.

    A perturbation is centred at grey and scaled by its epsilon for linf; for l2 and l1, whose epsilon bounds no single
    value, by the largest change shown.
    """
    clean, adversarial = pictures.clean[:SHOWN], pictures.adversarial[:SHOWN]
    clean = clean[: len(adversarial)]
    moved = adversarial - clean
    scale = cell.epsilon if cell.norm == "linf" else bitmap.largest(moved)
    shares = energy(torch.from_numpy(moved).double())
    triples = [
        Triple(
            pictures.labels[number],
            pictures.clean_predictions[number],
            pictures.predictions[number],
            low(shares[number]) if moved[number].any() else None,
            *map(
                png,
                (clean[number], adversarial[number], bitmap.centered(moved[number], scale), picture(shares[number])),
            ),
        )
        for number in range(len(clean))
    ]
    meaning = f"epsilon {amount(scale)}" if cell.norm == "linf" else f"{scale:.2g}, the largest change shown"
    return Gallery(tuple(triples), meaning, spectrum(shares))


def png(image: NDArray[np.float32], side: int = _LARGEST) -> str:
    """An image (C, H, W) as a data: URI, thinned to at most `side` pixels a side; see `bitmap.png`."""
    stride = -(-max(image.shape[1:]) // side)
    data = base64.b64encode(bitmap.png(image[:, ::stride, ::stride])).decode()
    return f"data:image/png;base64,{data}"
