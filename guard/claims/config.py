"""ClaimConfig: a sentence, what is computed to check it, and what it expects to come out."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    field_serializer,
    field_validator,
    model_validator,
)

from guard.building import given
from guard.config import EvaluationConfig
from guard.configparts import Config, Dataset, Model, Part, Several, Some
from guard.learned_defense import LearnedDefense
from guard.learner import Learner
from guard.recipe import Training
from guard.threat import Amount

_BESIDE = {"seed": "seeds: [0, 1, 2]", "plugins": "plugins"}  # what an evaluation's config has elsewhere
_FEW = 3  # seeds: of fewer trainings nobody knows whether the next comes out alike


class Selector(Part):
    """Which cell of the evaluation; what is left out must leave no choice."""

    attack: str | None = None
    """The attack's label."""
    defense: str | None = None
    """The defense's label."""
    knowledge: str | None = None
    """adaptive, oblivious or transfer."""
    model: str | None = None
    """What reports call the model."""
    epsilon: Amount | None = None
    """The threat's."""


class Line(Part):
    """What one line expects: that one figure is lower than another."""

    by: Annotated[PositiveFloat, Field(lt=1)] | None = None
    """At least so much lower, as a fraction of all images; any difference that is no chance where left out."""


class CellLine(Line):
    """Of the robust accuracies of two cells, one is lower than the other."""

    lower: Selector
    higher: Selector


class ShuffleLine(Line):
    """Of the shares of images that keep their prediction when they are shuffled, one is lower than the other."""

    side: PositiveInt
    """Of the blocks, in pixels."""
    lower: Literal["blocks", "pixels"]
    higher: Literal["blocks", "pixels"]

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.lower == self.higher:
            raise ValueError(f"lower and higher are both {self.lower}; one is blocks, the other pixels")
        return self


class Shuffle(Part):
    """An experiment: how many images keep their prediction when blocks, or the pixels in them, are shuffled."""

    dataset: Dataset = Field(examples=["digits"])
    """The images: a name, or {name: ..., key: value}."""
    model: Model = Field(examples=["small-cnn"])
    """A name, {name: ..., weights: ...}, or path/to/file.py:function."""
    sides: Several[PositiveInt] = Field(examples=[[4, 2]])
    """Of the blocks, in pixels; each divides the images' sides."""
    training: Training = Training()
    """How a model without weights is trained."""
    limit: PositiveInt | None = None
    """Shuffle so many images; all where left out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""


def _kind(line: Any) -> str:
    return "shuffle" if isinstance(line, ShuffleLine) or (isinstance(line, Mapping) and "side" in line) else "cells"


Expected = Annotated[Annotated[CellLine, Tag("cells")] | Annotated[ShuffleLine, Tag("shuffle")], Discriminator(_kind)]


class ClaimConfig(Config):
    """A claim: the sentence, an evaluation or an experiment for each seed, and what it expects of them."""

    claim: str = Field(examples=["Adversarial training cannot withstand low-frequency perturbations."])
    """The sentence."""
    evaluate: EvaluationConfig | None = None
    """An evaluation, all its keys but seed and plugins."""
    shuffle: Shuffle | None = None
    """Or the shuffle experiment."""
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
        if (self.evaluate is None) == (self.shuffle is None):
            raise ValueError("a claim has one of evaluate and shuffle; write the one that it is checked by")
        for key, instead in _BESIDE.items():
            if self.evaluate is not None and key in self.evaluate.model_fields_set:
                raise ValueError(f"evaluate has '{key}'; write {instead} beside it, not in it")
        for place, line in enumerate(self.expect):
            if isinstance(line, CellLine) != (self.evaluate is not None):
                wanted = (
                    "{lower: {attack: ...}, higher: ...}" if self.evaluate else "{side: ..., lower: ..., higher: ...}"
                )
                raise ValueError(f"expect[{place}] does not fit what is computed; write {wanted}")
            if self.shuffle is not None and isinstance(line, ShuffleLine) and line.side not in self.shuffle.sides:
                known = ", ".join(map(str, self.shuffle.sides))
                raise ValueError(f"expect[{place}] has side {line.side}, and sides are {known}; write one of them")
        if len(self.seeds) < _FEW and (what := self.trained):
            raise ValueError(
                f"{what} is trained, and seeds are {len(self.seeds)}; write at least {_FEW}, for one training says "
                f"nothing about the next"
            )
        return self

    @property
    def trained(self) -> str:
        """Something that each seed trains anew; empty where nothing is."""
        sources = [self.shuffle.model] if self.shuffle else self.evaluate.sources if self.evaluate else []
        for source in sources:
            if not given(source):
                return f"model '{source.name}'"
        for entry in self.evaluate.defenses if self.evaluate else ():
            for member in entry.stack.members:
                if member.trains or (isinstance(member, LearnedDefense) and _learns(member)):
                    return f"defense '{entry.label}'"
        for attack in self.evaluate.attacks if self.evaluate else ():
            if isinstance(attack.attack, Learner) and _learns(attack.attack):
                return f"attack '{attack.label}'"
        return ""


def _learns(part: Learner) -> bool:
    return part.weights is None and not part.learned
