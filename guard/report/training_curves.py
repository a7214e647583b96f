"""Curves of a training: accuracies, loss and learning rate by epoch."""

from functools import partial
from operator import attrgetter

from guard.report.charts import WIDE, Chart, chart
from guard.report.text import seconds
from guard.report.training_words import figures, measured, planned
from guard.training.record import Epoch, Record


def pictures(record: Record) -> list[Chart]:
    """Accuracy where any was measured, then loss and learning rate; none before the first epoch is over.

    A training that is not finished leaves room for the epochs to come.
    """
    if not record.epochs:
        return []
    room = 0 if record.finished else planned(record)
    drawn = partial(chart, epochs=record.epochs, said=_said, kept=record.kept, planned=room)
    shares = {kind: attrgetter(kind) for kind, _ in measured(record)}
    top = [drawn("Accuracy on held-out training images, in %", lines=shares, size=WIDE, percent=True)] if shares else []
    rest = (("Loss", "loss"), ("Learning rate", "lr"))
    return [*top, *(drawn(caption, lines={kind: attrgetter(kind)}) for caption, kind in rest)]


def _said(epoch: Epoch) -> str:
    """All of an epoch in a line, and its events in lines of their own."""
    parts = [*figures(epoch), f"loss {epoch.loss:.3f}", f"learning rate {epoch.lr:.3g}", seconds(epoch.seconds)]
    return "\n".join([f"epoch {epoch.epoch}: {', '.join(parts)}", *epoch.events])
