"""What a training is called, how far it came and what was kept of it, in words."""

from pydantic import JsonValue

from guard.report.text import many, percent, seconds
from guard.threat import ThreatModel
from guard.training.record import Epoch, Record

MEASURED = (("clean", "clean"), ("fgsm", "FGSM"), ("pgd", "PGD"))
"""The accuracies of an epoch: field and name."""


def title(record: Record) -> str:
    """What was trained: 'small-cnn trained with trades on cifar10, linf 8/255'; says what of it the config names."""
    defense = "without a defense" if record.label == "none" else f"with {record.label}"
    name = _name(record.config.get("dataset"))
    said = f"{record.model} trained {defense}" + (f" on {name}" if name else "")
    return ", ".join(filter(None, (said, _threat(record.config.get("threat")))))


def planned(record: Record) -> int:
    """How many epochs were asked for; those that are over where the config does not say."""
    section = record.config.get("training")
    epochs = section.get("epochs") if isinstance(section, dict) else None
    return max(epochs if isinstance(epochs, int) else 0, len(record.epochs))


def came(record: Record) -> str:
    """How far it came and what that took: '12 of 30 epochs, not finished; 45,000 images, 3 min 20 s'."""
    done, of = len(record.epochs), planned(record)
    how = "" if record.finished and done == of else ", ended early" if record.finished else ", not finished"
    took = seconds(sum(epoch.seconds for epoch in record.epochs))
    return f"{done} of {many(of, 'epoch')}{how}; {many(record.images, 'image')} learned on, {took}"


def kept(record: Record) -> Epoch | None:
    """The epoch whose weights were kept; None while none is over."""
    return next((epoch for epoch in record.epochs if epoch.epoch == record.kept), None)


def standing(record: Record) -> list[tuple[str, Epoch]]:
    """The epoch that was kept and, where that is another one, the last, each with what it is called."""
    best = kept(record)
    named = [(f"epoch {best.epoch}, kept", best)] if best else []
    last = record.epochs[-1:]
    return named + [(f"epoch {epoch.epoch}, the last", epoch) for epoch in last if epoch is not best]


def measured(record: Record) -> list[tuple[str, str]]:
    """Those accuracies that some epoch has: field and name."""
    return [pair for pair in MEASURED if any(getattr(epoch, pair[0]) is not None for epoch in record.epochs)]


def figures(epoch: Epoch) -> list[str]:
    """The accuracies that an epoch has, in percent: 'clean 97.1', 'FGSM 90.2'."""
    shares = [(name, getattr(epoch, field)) for field, name in MEASURED]
    return [f"{name} {percent(share):>4}" for name, share in shares if share is not None]


def where(record: Record) -> str:
    """Which images the accuracies are of, so that nobody takes them for a test's."""
    if not record.held_out:
        return "No training image was held out, so no accuracy was measured."
    images = many(record.held_out, "held-out training image")
    if not record.behind:
        return f"Accuracies are of {images}, never of the test split."
    names = ", ".join(record.behind)
    return (
        f"Accuracies are of {images}, never of the test split, behind {names}, which the network in the folder is "
        f"without: evaluate it with defenses: [[{names}]]."
    )


def _name(dataset: JsonValue) -> str:
    return str((dataset.get("name") if isinstance(dataset, dict) else dataset) or "")


def _threat(threat: JsonValue) -> str:
    """Of several the first, which is the one that a training meets; empty where it is none that can be read."""
    first = threat[0] if isinstance(threat, list) and threat else threat
    try:
        return str(ThreatModel.model_validate(first))
    except ValueError:
        return ""
