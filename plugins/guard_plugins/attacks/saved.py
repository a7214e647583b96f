"""Adversarial images from a file."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from guard import Attack, Cost, Goal, InputError, Rng, ThreatModel, Victim, hookimpl


class Saved(Attack):
    """Scores adversarial images that `--keep-images`, or another program, wrote: `adversarial` float (N, C, H, W) and
    `indices` int (N,), the position of each in its split. An image that the file lacks stays as it is."""

    name = "saved"
    access = "transfer"

    path: str
    """The .npz file."""

    def fingerprint(self) -> str:
        """The file's content."""
        return hashlib.sha256(self._file().read_bytes()).hexdigest()

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """See `Attack.perturb`."""
        adversarial, indices = self._load()
        if adversarial.shape[1:] != images.shape[1:]:
            raise InputError(
                f"'{self.path}' holds images of shape {tuple(adversarial.shape[1:])}; "
                f"the data set's are {tuple(images.shape[1:])}. Save them from the same data set"
            )
        match = rng.index.cpu()[:, None] == indices[None]
        rows, places = match.nonzero(as_tuple=True)
        result = images.clone()
        result[rows.to(images.device)] = adversarial[places].to(images)
        return result

    def cost(self, num_classes: int) -> Cost:
        """Nothing."""
        return Cost(0, 0)

    def _load(self) -> tuple[Tensor, Tensor]:
        try:
            with self._file().open("rb") as file, np.load(file, allow_pickle=False) as saved:
                arrays = dict(saved)
        except (ValueError, TypeError, EOFError, BadZipFile) as error:
            raise InputError(f"'{self.path}' is no .npz file of arrays. Write it with numpy.savez") from error
        missing = {"adversarial", "indices"} - arrays.keys()
        if missing:
            raise InputError(f"'{self.path}' lacks {', '.join(sorted(missing))}. Save adversarial and indices")
        images, places = torch.from_numpy(arrays["adversarial"]), torch.from_numpy(arrays["indices"])
        if len(images) != len(places):
            raise InputError(f"'{self.path}' holds {len(images)} images and {len(places)} indices. Save one for each")
        return images, places

    def _file(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise InputError(f"attack 'saved' finds no file '{self.path}'. Give path: RUN/images/LABEL.npz")
        return path


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [Saved]
