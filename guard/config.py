"""EvaluationConfig: everything that decides an evaluation, validated."""

from typing import Annotated, Any, Literal

import torch
from pydantic import (
    AfterValidator,
    Field,
    GetJsonSchemaHandler,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    model_serializer,
)
from pydantic_core import CoreSchema

from guard.attack import Attack
from guard.configparts import (
    Config,
    Dataset,
    DefenseEntry,
    Labelled,
    Model,
    Part,
    Several,
    Some,
    Threat,
    numbered,
    resolve,
)
from guard.recipe import Training
from guard.source import ModelSource


class Targets(Part):
    """A targeted goal."""

    targets: Literal["least-likely", "random", "next"] | NonNegativeInt = Field(examples=["least-likely"])
    """The class to reach: the least likely one, a random other, the label's successor, or a class number."""

    def __str__(self) -> str:
        return f"targeted: {self.targets}"


class Transfer(Part):
    """Knowledge of another model only: the attack is crafted on it."""

    transfer: Model = Field(examples=["small-cnn"])
    """The source model."""

    def __str__(self) -> str:
        return "transfer"


Precision = Literal["float32", "float64", "bf16"]
GoalSetting = Literal["untargeted"] | Targets
Knowledge = Literal["adaptive", "oblivious"] | Transfer


class Entry(Labelled):
    """One of the attacks to run."""

    attack: Attack

    @classmethod
    def _content(cls, data: Any, info: ValidationInfo) -> dict[str, Any]:
        return {"attack": resolve("attack", data, info)}

    @property
    def default_label(self) -> str:
        """The attack's name."""
        return self.attack.name or type(self.attack).__name__

    @model_serializer
    def _serialise(self) -> dict[str, Any]:
        return self._labelled(self.attack.model_dump(mode="json"))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"component": "attack", "labelled": True}


class EvaluationConfig(Config):
    """An evaluation: which attacks meet which defenses of which model, on which images, under which threat.

    Paths in it are relative to the working directory, but for `plugins` of a config file, which are relative to it.
    """

    dataset: Dataset = Field(examples=["digits"])
    """The images: a name, or {name: ..., key: value}."""
    model: Some[Model] = Field(examples=["small-cnn"])
    """One model or a list: a name, {name: ..., weights: ...}, or path/to/file.py:function."""
    threat: Several[Threat] = Field(examples=[{"norm": "linf", "epsilon": "8/255"}])
    """{norm: linf, epsilon: 8/255}, or a list; each is its own table."""
    attacks: Annotated[Some[Entry], AfterValidator(numbered)] = Field(examples=[["fgsm", "pgd"]])
    """Names, or {name: ..., key: value, as: label}."""
    defenses: Annotated[Some[DefenseEntry], AfterValidator(numbered)] = (DefenseEntry(label="none"),)
    """Names or {name: ..., key: value, as: label}; an inner list is a stack, left to right."""
    knowledge: Several[Knowledge] = ("adaptive",)
    """adaptive, oblivious, or {transfer: MODEL}; one or a list."""
    goal: Several[GoalSetting] = ("untargeted",)
    """untargeted, or {targets: least-likely | random | next | CLASS}; one or a list."""
    training: Training = Training()
    """How what has no weights, and what a defense must train, is trained."""
    limit: PositiveInt | None = None
    """Evaluate so many images: the first ones, of a folder a sample with as many of each class; all where left out."""
    seed: Several[NonNegativeInt] = (0,)
    """One seed or a list."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    precision: Precision = "float32"
    """float64 makes results exactly independent of the batch size; with bf16 attacks that follow the sign of a gradient
    search in bfloat16, and each success is confirmed in float32."""
    early_stop: bool = True
    """Stop at an image once it reaches the goal; false tells how far an attack would go."""
    max_queries: PositiveInt | None = None
    """How often an attack may ask about one image; no limit where left out."""
    eot: PositiveInt = 20
    """Draws that an attack's gradients and logits are averaged over where the victim is randomized."""
    scoring_draws: PositiveInt = 100
    """Draws that each image is scored on where the victim is randomized; a fifth as many choose among candidates."""
    batch_size: PositiveInt | None = None
    """Images per forward, at most 256; chosen by the device and the size of the model's layers where left out."""

    @property
    def dtype(self) -> torch.dtype:
        """What images and networks are held in."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def sources(self) -> list[ModelSource]:
        """The models, those that attacks are transferred from included."""
        return [*self.model, *(item.transfer for item in self.knowledge if isinstance(item, Transfer))]
