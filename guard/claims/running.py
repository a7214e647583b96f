"""Running: what a claim asks for, computed seed by seed, and the verdict."""

from collections.abc import Callable, Sequence

from guard.claims.config import CellLine, ClaimConfig
from guard.claims.selecting import pairs
from guard.claims.shuffling import shuffled
from guard.claims.verdict import Comparison, Figure, Verdict, compared, corrected, ruled
from guard.config import EvaluationConfig
from guard.environment import versions
from guard.evaluation.result import Cell, Results
from guard.progress import Progress

Evaluate = Callable[[EvaluationConfig, str], Results]
"""Evaluates one seed of a claim; the text is the name of the seed's folder."""


def run(config: ClaimConfig, evaluate: Evaluate, progress: Progress) -> Verdict:
    """Compute every seed and rule. Raises InputError, for lines that select no single cell before anything is computed.

    What the store holds is not computed again, so that a run that was killed goes on where it stopped.
    """
    places, found, folders, images = pairs(config), list[Comparison](), dict[int, str](), 0
    for number, seed in enumerate(config.seeds):
        if len(config.seeds) > 1:
            progress.say(f"seed {seed}, {number + 1} of {len(config.seeds)}")
        if config.evaluate is not None:
            folders[seed] = f"seed-{seed}"
            once = config.evaluate.model_copy(update={"seed": (seed,), "plugins": config.plugins})
            results = evaluate(once, folders[seed])
            images = max(images, *(cell.images for cell in results.cells))
            found += _of_cells(config, places, results, seed)
        else:
            rows, images = shuffled(config, seed, progress)
            found += rows
    rows = corrected(sorted(found, key=lambda item: item.line))
    verdict, why = ruled(rows)
    return Verdict(
        claim=config.claim,
        verdict=verdict,
        why=why,
        images=images,
        comparisons=tuple(rows),
        folders=folders,
        config=config.model_dump(mode="json", by_alias=True, exclude_none=True),
        versions=versions(),
    )


def _of_cells(config: ClaimConfig, places: Sequence[tuple[int, int]], results: Results, seed: int) -> list[Comparison]:
    """The lines in one seed; the cells of a result are in the order of the plan."""
    rows = []
    lines = [line for line in config.expect if isinstance(line, CellLine)]
    for number, (line, pair) in enumerate(zip(lines, places, strict=True)):
        cells = [results.cells[place] for place in pair]
        lower, higher = (_figure(cell, cells) for cell in cells)
        if any(cell.key not in results.standing for cell in cells):
            rows.append(Comparison(line=number, seed=seed, lower=lower, higher=higher, by=line.by or 0.0))
        else:
            stands = [results.standing[cell.key] for cell in cells]
            rows.append(compared(number, seed, lower, higher, line.by, stands))
    return rows


def _figure(cell: Cell, both: Sequence[Cell]) -> Figure:
    """What a cell is called beside the other one, and what is wrong with it."""
    parts = [cell.model] if len({other.model for other in both}) > 1 else []
    parts += [f"epsilon {cell.epsilon:.4g}"] if len({other.epsilon for other in both}) > 1 else []
    said = ", ".join([f"{cell.label} on {cell.defense}", cell.knowledge, *parts])
    mark = "" if cell.status == "VALID" else f"{cell.status}: {cell.reason}"
    return Figure(name=said, share=cell.robust_accuracy, interval=cell.robust_accuracy_interval, mark=mark)
