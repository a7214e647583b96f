"""Measuring: the figures of two cells that a line compares, image by image."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.building import framed
from guard.claims.config import Cues
from guard.claims.cueing import cued, predicted
from guard.claims.lines import CellLine
from guard.config import EvaluationConfig
from guard.environment import device_of
from guard.errors import InputError, suggestion
from guard.evaluation.images import load_images
from guard.evaluation.network import SCORING, Network
from guard.evaluation.plan import PlannedCell, cells, name_of
from guard.evaluation.prepare import PROBED, Workshop
from guard.evaluation.result import Results
from guard.evaluation.store import Store
from guard.explaining.cues import decisions
from guard.explaining.jumps import jumps, likeness
from guard.progress import Progress
from guard.rng import Rng
from guard.source import Data
from guard.stage import bridged

_BATCH = 32  # images whose activations are held at once

Values = NDArray[Any]
"""A figure of each image, (N,): bool or float, NaN where an image has none; (1,) where it is one of all images."""


class Measures:
    """What one seed's evaluation says of its cells, and what is asked of its networks afterwards."""

    def __init__(self, settings: EvaluationConfig, results: Results, cues: Cues | None, progress: Progress) -> None:
        """`settings`, `results`: of one seed; the results keep the adversarial images where lines need them."""
        self._settings = settings.model_copy(update={"dataset": framed(settings.dataset, settings.sources)})
        self._results, self._cues, self._progress = results, cues, progress
        self._device = device_of(settings.device)
        self._profiles: dict[int, dict[str, Values]] = {}
        self._decided: dict[int, Values] = {}

    def values(self, line: CellLine, place: int) -> Values:
        """The figure that a line is about, of a cell with an outcome, by its place in the plan. Raises InputError."""
        cell = self._results.cells[place]
        if line.figure == "robust-accuracy":
            return self._results.standing[cell.key]
        if line.figure == "seconds":
            return np.array([(cell.seconds or 0.0) / cell.images])
        if line.figure == "shape-bias":
            return self._decisions(self._planned[place])
        if line.figure == "likeness":
            return likeness(self._adversarial(place) - self._data.floats()).numpy()
        jumps, layer = self._jumps(place), str(line.layer)
        found = jumps.get(layer, jumps.get(layer.removeprefix("net.")))
        if found is None:
            known = suggestion(layer, jumps)
            raise InputError(f"a line's layer is '{layer}', which the network does not have. {known}")
        return found

    def profile(self, place: int) -> dict[str, float]:
        """How far the attack of a cell moves each layer of its network: the median over images, by layer."""
        return {layer: float(np.nanmedian(values)) for layer, values in self._jumps(place).items()}

    def _jumps(self, place: int) -> dict[str, Values]:
        """Of each image; NaN of those that the attack does not move at all."""
        if place not in self._profiles:
            clean, adversarial = self._data.floats(), self._adversarial(place)
            network = self._network(self._planned[place])
            parts = [
                jumps(network.model, *(self._seen(network, images, rows) for images in (clean, adversarial)))
                for rows in torch.arange(len(clean)).split(_BATCH)
            ]
            still = (adversarial == clean).flatten(1).all(1)
            found = {name: torch.cat([part[name].double().cpu() for part in parts]) for name in parts[0]}
            self._profiles[place] = {name: each.masked_fill(still, torch.nan).numpy() for name, each in found.items()}
        return self._profiles[place]

    def _decisions(self, cell: PlannedCell) -> Values:
        """1 for the shape, 0 for the texture, NaN for neither, of the network of a cell."""
        assert self._cues is not None
        network, settings = self._network(cell), self._settings
        if id(network) not in self._decided:
            data, textures = cued(self._cues, settings.sources, settings.seed[0])
            classes = predicted(network, data, self._device, settings.dtype, settings.seed[0], settings.scoring_draws)
            self._decided[id(network)] = decisions(classes, data.labels, textures).numpy()
        return self._decided[id(network)]

    def _seen(self, network: Network, images: Tensor, rows: Tensor) -> Tensor:
        """Images as the model behind the stages sees them: a randomized stage does the same to both images."""
        index = self._data.index[rows].to(self._device)
        rng = Rng(self._settings.seed[0], index, tuple(images.shape[1:])).fold(SCORING)
        return bridged(network.stages, images[rows].to(self._device, self._settings.dtype), rng)

    def _adversarial(self, place: int) -> Tensor:
        return torch.from_numpy(self._results.adversarial[self._results.cells[place].key])

    def _network(self, cell: PlannedCell) -> Network:
        return self._workshop.defended(cell.model, cell.defense, name_of(cell)).network

    @cached_property
    def _planned(self) -> list[PlannedCell]:
        return cells(self._settings)

    @cached_property
    def _data(self) -> Data:
        """The images that were evaluated."""
        return load_images(self._settings.dataset, self._settings.limit, self._settings.seed[0]).loaded()

    @cached_property
    def _workshop(self) -> Workshop:
        probe = self._data[:PROBED]
        return Workshop(self._settings, Store(), self._device, self._progress, probe, no_train=False)
