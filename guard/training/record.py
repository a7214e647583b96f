"""Record: what a training wrote down about itself, as training.json keeps it."""

from pydantic import BaseModel, ConfigDict, JsonValue


class Epoch(BaseModel):
    """One epoch, and how the network did on the held-out training images after it. Accuracies are fractions."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    """From 1."""
    lr: float
    """The learning rate of its last update."""
    loss: float
    """Mean over its images."""
    clean: float | None = None
    """Clean accuracy; None where no image is held out."""
    fgsm: float | None = None
    """Robust accuracy under one full step; None where the threat has no bound."""
    pgd: float | None = None
    """Robust accuracy under PGD with 10 steps."""
    figures: dict[str, float] = {}
    """What else was seen, by name: of a learned attack, how it does; what a defense wrote down."""
    seconds: float
    """Of its updates and its validation."""
    events: tuple[str, ...] = ()
    """What happened: an alarm, a step back. One line each."""


class Record(BaseModel):
    """A training: what was asked for, how it went, and which weights were kept."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    config: dict[str, JsonValue]
    """The whole config, components with all their parameters."""
    label: str
    """Of the stack of defenses, such as trades + awp."""
    model: str
    """What a report calls the model."""
    behind: tuple[str, ...] = ()
    """Preprocesses that it was trained and validated behind; the weights are of the network without them."""
    num_classes: int
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    images: int
    """That it learned on."""
    held_out: int
    """Training images that it was validated on instead."""
    data: str
    """Fingerprint of the training split."""
    start: str = ""
    """Fingerprint of the weights that it started from."""
    code: str = ""
    """Fingerprint of the model's and the defenses' code; empty where that cannot be told."""
    versions: dict[str, str]
    epochs: tuple[Epoch, ...] = ()
    kept: int | None = None
    """The epoch whose weights were kept; None while none is over, and where all of them overfitted catastrophically."""
    finished: bool = False
