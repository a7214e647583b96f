"""What attacks learned, as the page shows it: how, how that went by epoch, and a perturbation to look at."""

from collections.abc import Callable
from dataclasses import dataclass

from guard.evaluation import bitmap
from guard.evaluation.result import Cell, Fit, Results
from guard.report.charts import Chart, chart
from guard.report.learned_words import Figure, aim, figures, fits, labels, names, shared, told
from guard.report.pictures import png
from guard.report.text import distance
from guard.training.record import Epoch

_SIDE = 256  # pixels of a side of a perturbation's picture, at most


@dataclass(frozen=True)
class Learned:
    """One time that an attack learned."""

    labels: str
    fit: Fit
    weights: str | None
    """The file that it was read from; None where it was learned for this run."""
    aim: str
    shared: str
    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...]
    """Of each figure by epoch; none of a single epoch."""
    picture: str | None
    """The perturbation, where one was learned for all images: a PNG as a data: URI."""
    scale: str
    """The change that is white in the picture."""


def learned(report: Results) -> list[Learned]:
    """All that the attacks of a report learned, in the order of the cells."""
    return [_learned(report, fit, cells) for fit, cells in fits(report.cells)]


def _learned(report: Results, fit: Fit, cells: list[Cell]) -> Learned:
    given = (report.pictures[cell.key].learned for cell in cells if cell.key in report.pictures)
    perturbation = next((found for found in given if found is not None), None)
    scale = 1.0 if perturbation is None else bitmap.largest(perturbation)
    drawn = names(fit) if len(fit.epochs) > 1 else []
    return Learned(
        labels=labels(cells),
        fit=fit,
        weights=cells[0].attack_parameters.get("weights"),
        aim=aim(fit),
        shared=shared(fit),
        figures=tuple(figures(fit)),
        charts=tuple(chart(name, fit.epochs, {"figure": _reader(name)}, told, kept=fit.kept) for name in drawn),
        picture=None if perturbation is None else png(bitmap.centered(perturbation, scale), _SIDE),
        scale=distance(scale),
    )


def _reader(name: str) -> Callable[[Epoch], float | None]:
    return lambda epoch: epoch.figures.get(name)
