"""What an evaluation returns: cells, worst cases and what they were computed with."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from guard.training.record import Epoch

Status = Literal["VALID", "SUSPECT", "INVALID", "NOT_APPLICABLE", "INCOMPLETE"]


class Candidate(BaseModel):
    """One way the attacker tried inside a cell."""

    model_config = ConfigDict(frozen=True)

    name: str
    """gradient, bpda, queries, relax, identity, smoothed, oblivious, transfer or learned."""
    images: int
    robust_accuracy: float
    """Under this candidate alone."""
    forwards_per_image: float
    backwards_per_image: float
    seconds: float


class Fit(BaseModel):
    """What an attack learned before it attacked, and on what."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="strings")

    attack: dict[str, Any]
    """Its parameters."""
    model: str
    """What it learned against."""
    dataset: str
    """On the training split of which it learned."""
    images: int
    """That it learned on."""
    held_out: int
    """Training images by which its best epoch was chosen."""
    shared: int
    """Evaluated images that are among those that it learned on, where the data set repeats itself."""
    goal: str
    norm: str
    epsilon: float | None
    """None where it knows no bound."""
    seed: int
    forwards: int
    """That it asked of the model, over all images; its queries."""
    backwards: int
    seconds: float
    epochs: tuple[Epoch, ...]
    kept: int | None
    """The epoch whose weights it attacks with."""


class PartRow(BaseModel):
    """One member of a cascade of attacks, over the images that are classified correctly."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    images: int
    """That it was tried on: those that the members before it left."""
    broke: int
    """That it brought to the goal."""
    forwards_per_image: float
    """Of those that it was tried on, as the next."""
    backwards_per_image: float


class Row(BaseModel):
    """What a cell and a worst case have in common. Accuracies are fractions of all images."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="strings")

    key: str
    dataset: str
    model: str
    defense: str
    """The stack, left to right: 'shape-bias + adversarial-training'; 'none' for no defense."""
    goal: str
    norm: str
    epsilon: float
    knowledge: str
    """adaptive, oblivious or transfer."""
    source: str | None = None
    """The model a transferred attack was crafted on."""
    seed: int
    status: Status
    reason: str = ""
    images: int = 0
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    """Share of all images predicted as their true label under the attacks run: an upper bound."""
    robust_accuracy_interval: tuple[float, float] | None = None
    """Wilson, 95 %."""
    robust_accuracy_8bit: float | None = None
    """After rounding to 8 bits inside the ball; null where the data are not on that grid."""
    attack_success_rate: float | None = None
    attack_success_denominator: int | None = None
    """Images classified correctly; for a targeted goal less those whose target is their label."""
    max_distance: float | None = None
    median_distance: float | None = None
    """Over the images whose adversary succeeded. In a cell of a minimum-distance attack over all that success is
    counted among, of the nearest point that reached the goal, whatever the epsilon; infinite where it reached the goal
    for fewer than half of them."""
    low_frequency_energy: float | None = None
    """Mean share of a perturbation's energy (its sum of squares) in the lowest quarter of the frequencies of each axis,
    such as the lowest 8 x 8 DCT coefficients of 32 x 32, where white noise has 1/16. Over all images that the attack
    moved; null where it moved none."""
    forwards_per_image: float | None = None
    """Of all images evaluated, as the next. What the whole answer cost, also where one run of a minimum-distance attack
    answers several epsilons."""
    backwards_per_image: float | None = None
    fit_forwards: int = 0
    """What the attack asked of a model while it learned, over all training images, as the next; also where several
    cells share what it learned."""
    fit_backwards: int = 0
    seconds: float | None = None


class Cell(Row):
    """Dataset x model x defense x attack x goal x threat model x knowledge x seed."""

    label: str
    """The attack's entry, unique in the run: 'pgd', 'pgd#2', or what the config names with `as:`."""
    attack: str
    attack_parameters: dict[str, Any]
    candidates: tuple[Candidate, ...] = ()
    parts: tuple[PartRow, ...] = ()
    """Of a cascade of attacks, its members in their order, in the first candidate; one that no image was left for is
    left out."""
    fit: Fit | None = None
    """Of an attack that learned: how, for the first candidate."""
    undecided: int | None = None
    """Of an attack that estimates a longer one: images that stand and might still fall."""
    curve: tuple[tuple[float, float], ...] = ()
    """Of a minimum-distance attack: (epsilon, robust accuracy) by rising epsilon, read off the distances of its nearest
    points: at 0, at quantiles of the distances, and at each epsilon of the run. At the cell's own epsilon
    `robust_accuracy` may lie below, where the projection of a point that is further away succeeds too. Under a targeted
    goal what counts is that the target is not reached."""
    eot: int = 1
    scoring_draws: int = 1


class WorstCase(Row):
    """Per image the worst over all attacks, goals and seeds of a model, defense, threat, knowledge and source.

    Where the knowledge is adaptive it spans the cells of all knowledge, for that attacker could have taken their points
    too. `goal` names all of them, `seed` is the first; success is any error, whatever the goals.
    """

    broken_first: dict[str, int] = {}
    """Attack label -> images that it broke and none before it."""
    broken_only: dict[str, int] = {}
    """Attack label -> images that it alone broke."""


class Pictures(BaseModel):
    """A few images of a cell to look at, float32 (n, C, H, W) in [0, 1]."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True, use_attribute_docstrings=True)

    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    labels: tuple[str, ...]
    clean_predictions: tuple[str, ...]
    predictions: tuple[str, ...]
    learned: NDArray[np.float32] | None = None
    """Of an attack that learned one perturbation (C, H, W) for all images: that, for the first candidate."""


class Results(BaseModel):
    """The result of a run: what `results.json` holds, and what a page needs beside it."""

    model_config = ConfigDict(arbitrary_types_allowed=True, ser_json_inf_nan="strings")

    schema_version: int = 1
    run: dict[str, Any]
    """started, seconds, device, computed_shards, cached_shards, image_shape; indices where images were sampled."""
    config: dict[str, Any]
    versions: dict[str, str]
    plugins: dict[str, str]
    """Component -> the plugin and distribution it came from."""
    cells: list[Cell]
    worst_case: list[WorstCase]
    pictures: dict[str, Pictures] = {}
    """Cell key -> pictures; not part of results.json."""
    standing: dict[str, NDArray[Any]] = {}
    """Cell key -> the share of draws on which each image stands, bool or float (N,); not part of results.json."""
    adversarial: dict[str, NDArray[Any]] = {}
    """Cell key -> the adversarial images (N, C, H, W), where they were to be kept; not part of results.json."""

    def to_json(self) -> str:
        """The text of results.json."""
        return self.model_dump_json(indent=2, exclude={"pictures", "standing", "adversarial"})

    def to_frame(self) -> Any:
        """The cells as a pandas DataFrame; needs pandas."""
        import pandas

        return pandas.DataFrame([cell.model_dump() for cell in self.cells])
