"""Training: how a network is trained."""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from guard.augmentation import Augmentation
from guard.configparts import Part, distinct

Share = Annotated[float, Field(ge=0, lt=1)]


class Training(Part):
    """How what must be trained is trained."""

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: PositiveInt = 30
    """Passes over the training split."""
    batch_size: PositiveInt = 128
    """Images per weight update, of all devices together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has momentum 0.9 (Nesterov)."""
    lr: PositiveFloat = 0.1
    """The largest learning rate."""
    weight_decay: NonNegativeFloat = 5e-4
    """Decay of the weights."""
    schedule: Literal["cyclic", "multi-step", "cosine", "constant"] = "cyclic"
    """cyclic: up to `lr` over the first 40 % of the updates, then down to 0; multi-step: a tenth from each of the
    `milestones` on; cosine: down to 0 along half a wave."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    """Shares of the updates."""
    warmup: Share = 0.0
    """The share of the updates over which the threat's epsilon grows from 0, lest a small network never begin to learn;
    a defense's own epsilon does not grow."""
    clip: PositiveFloat | None = None
    """The largest l2 norm of a gradient, all weights together; a longer one is scaled down."""
    ema: Share | None = None
    """Decay of an exponential moving average of the weights, such as 0.995, which is then what is kept."""
    label_smoothing: Share = 0.0
    """How much of a label is spread over all classes."""
    augmentation: Annotated[tuple[Augmentation, ...], AfterValidator(distinct)] = ()
    """crop (after padding by an eighth), flip (horizontal), cutout (half the side), cutmix; always in that order."""
    precision: Annotated[Literal["32", "bf16-mixed"], BeforeValidator(str)] = "32"
    """bf16-mixed computes what may be less precise in bfloat16; the weights stay float32."""
    validation: Share = 0.1
    """The share of the training images that is held out, at most 1,000 of them, to see after each epoch how robust the
    network is."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights: of the most robust one on the held-out images (where nothing acts in training, of the most
    accurate one), or of the last."""
    overfitting: Literal["stop", "roll-back", "ignore"] = "stop"
    """What to do about catastrophic overfitting: stop, or go back to the epoch before and on at half the learning rate.
    It has happened where one step leaves at least three quarters of clean accuracy and ten steps at most an eighth of
    that (nine tenths: a third), or where ten steps leave 20 points less than in the best epoch and one step lost less
    than half of that."""
    start: Literal["weights", "scratch"] = Field(default="weights", alias="from")
    """Where weights are given: fine-tune a copy of them, or train from scratch."""

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.milestones != type(self).model_fields["milestones"].default and self.schedule != "multi-step":
            raise ValueError(f"milestones are of schedule multi-step, and the schedule is {self.schedule}")
        return self
