"""Adversarial images from a file."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guard import Attack, Goal, InputError, Rng, ThreatModel, Victim, hookimpl


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
        with np.load(self._file(), allow_pickle=False) as saved:
            missing = {"adversarial", "indices"} - set(saved.files)
            if missing:
                raise InputError(f"'{self.path}' lacks {', '.join(sorted(missing))}. Save adversarial and indices")
            adversarial, indices = torch.from_numpy(saved["adversarial"]), torch.from_numpy(saved["indices"])
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

    def _file(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise InputError(f"attack 'saved' finds no file '{self.path}'. Give path: RUN/images/LABEL.npz")
        return path


@hookimpl
def guard_attacks() -> Iterable[type[Attack]]:
    """The attacks of this plugin."""
    return [Saved]
