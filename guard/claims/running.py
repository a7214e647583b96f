"""Running: what a claim asks for, computed seed by seed, and the verdict."""

from collections.abc import Callable, Sequence

from guard.claims.config import ClaimConfig
from guard.claims.cueing import check_like, cues
from guard.claims.lines import CellLine
from guard.claims.measuring import Measures
from guard.claims.selecting import pairs
from guard.claims.shuffling import shuffled
from guard.claims.verdict import Chart, Comparison, CuePicture, Figure, Verdict, compared, corrected, ruled
from guard.config import EvaluationConfig
from guard.environment import versions
from guard.evaluation.result import Cell, Results
from guard.progress import Progress

Evaluate = Callable[[EvaluationConfig, str, bool], Results]
"""Evaluates one seed of a claim: its config, the name of its folder, and whether the images are kept."""


def run(config: ClaimConfig, evaluate: Evaluate, progress: Progress) -> Verdict:
    """Compute every seed and rule. Raises InputError, for lines that select no single cell before anything is computed.

    What the store holds is not computed again, so that a run that was killed goes on where it stopped.
    """
    if config.evaluate is not None and config.looks_at_images:
        config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"early_stop": False})})
    if config.evaluate is not None and config.cues is not None:
        check_like(config.cues, config.evaluate)
    places, folders, images = pairs(config), dict[int, str](), 0
    found, charts, pictures = list[Comparison](), list[Chart](), tuple[CuePicture, ...]()
    for number, seed in enumerate(config.seeds):
        if len(config.seeds) > 1:
            progress.say(f"seed {seed}, {number + 1} of {len(config.seeds)}")
        if config.evaluate is not None:
            folders[seed] = f"seed-{seed}"
            once = config.evaluate.model_copy(update={"seed": (seed,), "plugins": config.plugins})
            results = evaluate(once, folders[seed], config.looks_at_images)
            images = max(images, *(cell.images for cell in results.cells))
            measures = Measures(once, results, config.cues, progress)
            found += _of_cells(config, places, results, measures, seed)
            charts += _charts(config, places, results, measures, seed) if number == 0 else []
        elif config.shuffle is not None:
            rows, images, chart = shuffled(config, seed, progress)
            found, charts = found + rows, [*charts, chart] if number == 0 else charts
        else:
            rows, images, shown = cues(config, seed, progress)
            found, pictures = found + rows, shown if number == 0 else pictures
    rows = corrected(sorted(found, key=lambda item: item.line))
    verdict, why = ruled(rows)
    return Verdict(
        claim=config.claim,
        verdict=verdict,
        why=why,
        images=images,
        comparisons=tuple(rows),
        folders=folders,
        charts=tuple(charts),
        pictures=pictures,
        config=config.model_dump(mode="json", by_alias=True, exclude_none=True),
        versions=versions(),
    )


def _of_cells(
    config: ClaimConfig, places: Sequence[tuple[int, int]], results: Results, measures: Measures, seed: int
) -> list[Comparison]:
    """The lines in one seed; the cells of a result are in the order of the plan."""
    rows = []
    lines = [line for line in config.expect if isinstance(line, CellLine)]
    for number, (line, pair) in enumerate(zip(lines, places, strict=True)):
        cells = [results.cells[place] for place in pair]
        lower, higher = (_figure(line, cell, cells) for cell in cells)
        if any(cell.key not in results.standing for cell in cells):
            row = Comparison(
                line=number,
                seed=seed,
                figure=line.figure,
                layer=line.layer,
                lower=lower,
                higher=higher,
                by=line.by or 0.0,
            )
        else:
            values = [measures.values(line, place) for place in pair]
            row = compared(number, seed, lower, higher, line.by, values, line.figure, line.layer)
        rows.append(row)
    return rows


def _figure(line: CellLine, cell: Cell, both: Sequence[Cell]) -> Figure:
    """What a cell is called beside the other one, and what is wrong with it."""
    parts = [cell.model] if len({other.model for other in both}) > 1 else []
    mark = "" if cell.status == "VALID" else f"{cell.status}: {cell.reason}"
    if line.figure == "shape-bias":  # of which attacks and budgets know nothing
        return Figure(name=", ".join([cell.defense, *parts]), mark=mark)
    parts += [f"epsilon {cell.epsilon:.4g}"] if len({other.epsilon for other in both}) > 1 else []
    said = ", ".join([f"{cell.label} on {cell.defense}", cell.knowledge, *parts])
    return Figure(name=said, mark=mark)


def _charts(
    config: ClaimConfig, places: Sequence[tuple[int, int]], results: Results, measures: Measures, seed: int
) -> list[Chart]:
    """For each pair of cells whose jumps are compared: those of all layers that both networks have."""
    lines = [line for line in config.expect if isinstance(line, CellLine)]
    jumping = {pair: line for line, pair in zip(lines, places, strict=True) if line.figure == "jump"}
    charts = []
    for pair, line in jumping.items():
        cells = [results.cells[place] for place in pair]
        if all(cell.key in results.standing for cell in cells):
            names = [_figure(line, cell, cells).name for cell in cells]
            profiles = [measures.profile(place) for place in pair]
            layers = [layer for layer in profiles[0] if layer in profiles[1]]
            charts.append(
                Chart(
                    title=f"how far features jump, median of ||a' - a|| / ||a||, by layer, seed {seed}",
                    places=tuple(layers),
                    lines={
                        name: tuple(profile[layer] for layer in layers)
                        for name, profile in zip(names, profiles, strict=True)
                    },
                    share=False,
                )
            )
    return charts
