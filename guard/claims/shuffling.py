"""Shuffling: the experiment of a claim about blocks and pixels, for one seed."""

from guard.claims.asking import asked
from guard.claims.config import ClaimConfig
from guard.claims.lines import ShuffleLine
from guard.claims.verdict import Chart, Comparison, Figure
from guard.explaining.shuffles import Agreement, agreement
from guard.progress import Progress


def shuffled(config: ClaimConfig, seed: int, progress: Progress) -> tuple[list[Comparison], int, Chart]:
    """The lines in one seed, how many images were shuffled, and all sides in one picture. Raises InputError."""
    assert config.shuffle is not None
    network, data, device, dtype = asked(config.shuffle, config.shuffle.model, seed, progress)
    found = agreement(network.model, data.floats().to(device, dtype), config.shuffle.sides, seed)
    by_side = {row.side: row for row in found}
    lines = [line for line in config.expect if isinstance(line, ShuffleLine)]
    rows = [_comparison(number, line, by_side[line.side], seed) for number, line in enumerate(lines)]
    return rows, len(data), _chart(found, seed)


def _chart(found: list[Agreement], seed: int) -> Chart:
    return Chart(
        title=f"images that keep their prediction, by the side of the blocks, seed {seed}",
        places=tuple(str(row.side) for row in found),
        lines={
            "whole blocks shuffled": tuple(row.blocks for row in found),
            "pixels shuffled inside blocks": tuple(row.pixels for row in found),
        },
        share=True,
    )


def _comparison(number: int, line: ShuffleLine, row: Agreement, seed: int) -> Comparison:
    figures = {
        "blocks": Figure(name=f"blocks of {row.side} shuffled", value=row.blocks, interval=row.blocks_interval),
        "pixels": Figure(name=f"pixels in blocks of {row.side}", value=row.pixels, interval=row.pixels_interval),
    }
    lower, higher = figures[line.lower], figures[line.higher]
    difference = row.blocks - row.pixels if line.higher == "blocks" else row.pixels - row.blocks
    return Comparison(
        line=number,
        seed=seed,
        figure="agreement",
        lower=lower,
        higher=higher,
        by=line.by or 0.0,
        difference=difference,
        sign=(difference > 0) - (difference < 0),
        p_value=row.p_value,
    )
