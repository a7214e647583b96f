"""The epochs of a training as scalars for TensorBoard."""

from pathlib import Path
from types import TracebackType
from typing import Self

from guard.errors import InputError
from guard.report.training_words import MEASURED
from guard.training.record import Epoch


class Events:
    """Writes epochs into a folder that `tensorboard --logdir` is pointed at; what was added can be seen at once.

    `first`: the epoch that a training starts or goes on with; TensorBoard hides what the folder had from there on.
    Raises InputError where the package tensorboard is missing or too old, or the folder cannot be written.
    """

    def __init__(self, folder: Path, first: int = 1) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "curves for TensorBoard need the package tensorboard, which is missing or too old. "
                'Type: pip install "guard-robustness[tensorboard]"'
            ) from error
        try:
            self._writer = SummaryWriter(str(folder), purge_step=first)
        except OSError as error:
            raise InputError(
                f"the folder '{folder}' for TensorBoard cannot be written: {error.strerror}. Give another folder"
            ) from error

    def add(self, epoch: Epoch) -> None:
        """Write one epoch: accuracies (fractions) that it has, loss, learning rate, seconds, and its events as text."""
        scalars = {f"held-out/{field}": getattr(epoch, field) for field, _ in MEASURED}
        scalars |= {"training/loss": epoch.loss, "training/lr": epoch.lr, "training/seconds": epoch.seconds}
        for tag, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(tag, value, epoch.epoch)
        if epoch.events:
            self._writer.add_text("events", "\n\n".join(epoch.events), epoch.epoch)
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
