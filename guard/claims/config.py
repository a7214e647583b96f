"""ClaimConfig: a sentence, what is computed to check it, and what it expects to come out."""

from typing import Any, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)

from guard.building import given
from guard.claims.lines import CellLine, CueLine, Expected, ShuffleLine
from guard.config import EvaluationConfig
from guard.configparts import Config, Dataset, Model, Part, Several, Some
from guard.learned_defense import LearnedDefense
from guard.learner import Learner
from guard.recipe import Training

_BESIDE = {"seed": "seeds: [0, 1, 2]", "plugins": "plugins"}  # what an evaluation's config has elsewhere
_LINES: dict[str, tuple[type, str]] = {
    "evaluate": (CellLine, "{lower: {attack: ...}, higher: ...}"),
    "shuffle": (ShuffleLine, "{side: ..., lower: ..., higher: ...}"),
    "cues": (CueLine, "{lower: shape, higher: texture}, or the other way round"),
}
_FEW = 3  # seeds: of fewer trainings nobody knows whether the next comes out alike


class Experiment(Part):
    """Something that one network is asked, without an attack."""

    dataset: Dataset = Field(examples=["digits"])
    """The images: a name, or {name: ..., key: value}."""
    training: Training = Training()
    """How a model without weights is trained."""
    limit: PositiveInt | None = None
    """So many images; all where left out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""


class Shuffle(Experiment):
    """How many images keep their prediction when blocks, or the pixels in them, are shuffled."""

    model: Model = Field(examples=["small-cnn"])
    """A name, {name: ..., weights: ...}, or path/to/file.py:function."""
    sides: Several[PositiveInt] = Field(examples=[[4, 2]])
    """Of the blocks, in pixels; each divides the images' sides."""


class Cues(Experiment):
    """Whether images whose shape and texture are of different classes are taken for the one or for the other.

    The data set has a method `textures(split)`, as `shapes` and `cue-conflict` have.
    """

    model: Model | None = Field(None, examples=["small-cnn"])
    """A name, {name: ..., weights: ...}, or path/to/file.py:function; left out beside `evaluate`, whose defended models
    are asked."""


class ClaimConfig(Config):
    """A claim: the sentence, an evaluation or an experiment for each seed, and what it expects of them."""

    claim: str = Field(examples=["Adversarial training cannot withstand low-frequency perturbations."])
    """The sentence."""
    evaluate: EvaluationConfig | None = None
    """An evaluation, all its keys but seed and plugins."""
    shuffle: Shuffle | None = None
    """Or the shuffle experiment."""
    cues: Cues | None = None
    """Or images with conflicting cues; beside an evaluation for its lines with figure: shape-bias."""
    seeds: Several[NonNegativeInt] = (0,)
    """Each trains and attacks anew; at least three where anything is trained."""
    expect: Some[Expected] = Field(examples=[[{"lower": {"attack": "low"}, "higher": {"attack": "pgd"}}]])
    """Lines, all of which the claim says to hold."""

    @field_validator("claim")
    @classmethod
    def _sentence(cls, claim: str) -> str:
        if not claim.split():
            raise ValueError("it says nothing; write the sentence that is checked")
        return " ".join(claim.split())

    @field_serializer("evaluate", mode="wrap")
    def _without_seed(self, evaluate: EvaluationConfig | None, handler: SerializerFunctionWrapHandler) -> Any:
        """As it may be read again."""
        written = handler(evaluate)
        return written and {key: value for key, value in written.items() if key not in _BESIDE}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        given = [name for name in ("evaluate", "shuffle", "cues") if getattr(self, name) is not None]
        if given not in (["evaluate"], ["shuffle"], ["cues"], ["evaluate", "cues"]):
            raise ValueError("a claim has one of evaluate, shuffle and cues; write the one that it is checked by")
        for key, instead in _BESIDE.items():
            if self.evaluate is not None and key in self.evaluate.model_fields_set:
                raise ValueError(f"evaluate has '{key}'; write {instead} beside it, not in it")
        if self.cues is not None:
            self._cued(self.cues)
        kind, wanted = _LINES[given[0]]
        for place, line in enumerate(self.expect):
            if not isinstance(line, kind):
                raise ValueError(f"expect[{place}] does not fit what is computed; write {wanted}")
            if isinstance(line, CellLine) and line.figure == "shape-bias" and self.cues is None:
                raise ValueError(
                    f"expect[{place}] is about shape-bias; write cues: {{dataset: {{name: shapes, split: conflict}}}}, "
                    f"the images that it is measured on"
                )
            if self.shuffle is not None and isinstance(line, ShuffleLine) and line.side not in self.shuffle.sides:
                known = ", ".join(map(str, self.shuffle.sides))
                raise ValueError(f"expect[{place}] has side {line.side}, and sides are {known}; write one of them")
        if len(self.seeds) < _FEW and (what := self.trained):
            raise ValueError(
                f"{what} is trained, and seeds are {len(self.seeds)}; write at least {_FEW}, for one training says "
                f"nothing about the next"
            )
        return self

    def _cued(self, cues: Cues) -> None:
        if (self.evaluate is None) == (cues.model is None):
            beside = "evaluate names the models" if cues.model is not None else "no model is named"
            raise ValueError(f"cues: {beside}; write model: in cues, or evaluate: beside it, not both")
        for key in ("training", "device"):
            if self.evaluate is not None and key in cues.model_fields_set:
                raise ValueError(f"cues: {key} is that of evaluate; write it there")
        if not callable(getattr(cues.dataset, "textures", None)):
            raise ValueError(
                f"cues: data set '{cues.dataset.name}' does not say what the textures of its images are; write "
                f"{{name: shapes, split: conflict}}, or {{name: cue-conflict, root: ...}}"
            )

    @property
    def looks_at_images(self) -> bool:
        """Whether a line needs the adversarial images themselves."""
        return any(isinstance(line, CellLine) and line.figure in ("jump", "likeness") for line in self.expect)

    @property
    def trained(self) -> str:
        """Something that each seed trains anew; empty where nothing is."""
        asked = [part.model for part in (self.shuffle, self.cues) if part is not None]
        for source in [*asked, *(self.evaluate.sources if self.evaluate else ())]:
            if source is not None and not given(source):
                return f"model '{source.name}'"
        for entry in self.evaluate.defenses if self.evaluate else ():
            for member in entry.stack.members:
                if member.trains or (isinstance(member, LearnedDefense) and member.must_learn):
                    return f"defense '{entry.label}'"
        for attack in self.evaluate.attacks if self.evaluate else ():
            if isinstance(attack.attack, Learner) and attack.attack.must_learn:
                return f"attack '{attack.label}'"
        return ""
