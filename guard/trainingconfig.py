"""TrainingConfig: everything that decides a training, validated."""

from pydantic import Field, NonNegativeInt

from guard.configparts import Config, Dataset, DefenseEntry, Model, Threat
from guard.recipe import Training


class TrainingConfig(Config):
    """A training: which network learns on which images, under which defenses against which threat.

    Paths in it are relative to the working directory, but for `plugins` of a config file, which are relative to it.
    """

    dataset: Dataset = Field(examples=["digits"])
    """The images: a name, or {name: ..., key: value}. Its training split is learned on, its test split never seen."""
    model: Model = Field(examples=["small-cnn"])
    """A name, {name: ..., weights: ...}, or path/to/file.py:function."""
    threat: Threat = Field(examples=[{"norm": "linf", "epsilon": "8/255"}])
    """{norm: linf, epsilon: 8/255}: what the defenses train against, and the robust validation attacks under."""
    defense: DefenseEntry = DefenseEntry(label="none")
    """A name, {name: ..., key: value}, or a list: a stack, left to right."""
    training: Training = Training()
    """How it is trained."""
    seed: NonNegativeInt = 0
    """Everything random follows from it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
