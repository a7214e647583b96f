"""Lines: what a claim expects, each that one figure is lower than another."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from guard.configparts import Part
from guard.threat import Amount

FigureKind = Literal["robust-accuracy", "shape-bias", "jump", "likeness", "seconds"]

SHARES = ("robust-accuracy", "shape-bias", "agreement", "decisions")
"""The figures that are fractions of images."""


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
    """At least so much lower, of shares as a fraction of all images, of other figures as a fraction of the higher one;
    any difference that is no chance where left out."""


class CellLine(Line):
    """Of two cells of the evaluation, one has a lower figure than the other."""

    figure: FigureKind = "robust-accuracy"
    """robust-accuracy; shape-bias, on the images of `cues`; jump, how far the attack moves what `layer` answers,
    relative to its size; likeness, the mean cosine of a perturbation with those of the other images; seconds that each
    image took when it was computed, scoring included, which are not tested. Where a line is about jumps or likeness,
    attacks do not stop at an image that reached its goal."""
    layer: Annotated[str, BeforeValidator(lambda name: str(name) if isinstance(name, int) else name)] | None = None
    """Of a jump, by its name in the network."""
    lower: Selector
    higher: Selector

    @model_validator(mode="after")
    def _layered(self) -> Self:
        if self.figure == "jump" and self.layer is None:
            raise ValueError("a jump is that of a layer; write layer: and its name")
        if self.figure != "jump" and self.layer is not None:
            raise ValueError(f"layer is of a jump, and figure is {self.figure}; write figure: jump, or no layer")
        return self


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


class CueLine(Line):
    """Of the shares of images that are taken for the class of one cue, one is lower than the other."""

    lower: Literal["shape", "texture"]
    higher: Literal["shape", "texture"]

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.lower == self.higher:
            raise ValueError(f"lower and higher are both {self.lower}; one is shape, the other texture")
        return self


def _kind(line: Any) -> str:
    """Which line it is, of what was written or of what was read."""
    if isinstance(line, Line):
        return {CellLine: "cells", ShuffleLine: "shuffle", CueLine: "cues"}[type(line)]
    if isinstance(line, Mapping) and "side" in line:
        return "shuffle"
    words = isinstance(line, Mapping) and any(isinstance(line.get(end), str) for end in ("lower", "higher"))
    return "cues" if words else "cells"


Expected = Annotated[
    Annotated[CellLine, Tag("cells")] | Annotated[ShuffleLine, Tag("shuffle")] | Annotated[CueLine, Tag("cues")],
    Discriminator(_kind),
]
