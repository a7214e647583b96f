"""Shuffling: the experiment of a claim about blocks and pixels, for one seed."""

from guard.building import framed
from guard.claims.config import ClaimConfig, ShuffleLine
from guard.claims.verdict import Comparison, Figure
from guard.config import EvaluationConfig
from guard.defense import Stack
from guard.environment import device_of
from guard.evaluation.images import load_images
from guard.evaluation.prepare import PROBED, Workshop
from guard.evaluation.store import Store
from guard.explaining.shuffles import Agreement, agreement
from guard.progress import Progress
from guard.threat import ThreatModel


def shuffled(config: ClaimConfig, seed: int, progress: Progress) -> tuple[list[Comparison], int]:
    """The lines in one seed, and how many images were shuffled. Raises InputError."""
    assert config.shuffle is not None
    shuffle, dataset = config.shuffle, framed(config.shuffle.dataset, [config.shuffle.model])
    device, data = device_of(shuffle.device), load_images(dataset, shuffle.limit, seed)
    # nobody attacks: the threat is only what a training's validation tells of each epoch
    settings = EvaluationConfig.model_construct(
        dataset=dataset,
        model=(shuffle.model,),
        threat=(ThreatModel(norm="linf", epsilon=8 / 255),),
        attacks=(),
        training=shuffle.training,
        seed=(seed,),
    )
    workshop = Workshop(settings, Store(), device, progress, data[:PROBED].loaded(), no_train=False)
    workshop.announce([(shuffle.model, Stack(), shuffle.model.name)])
    network = workshop.defended(shuffle.model, Stack(), shuffle.model.name).network
    found = agreement(network.model, data.floats().to(device, settings.dtype), shuffle.sides, seed)
    by_side = {row.side: row for row in found}
    lines = [line for line in config.expect if isinstance(line, ShuffleLine)]
    return [_comparison(number, line, by_side[line.side], seed) for number, line in enumerate(lines)], len(data)


def _comparison(number: int, line: ShuffleLine, row: Agreement, seed: int) -> Comparison:
    figures = {
        "blocks": Figure(name=f"blocks of {row.side} shuffled", share=row.blocks, interval=row.blocks_interval),
        "pixels": Figure(name=f"pixels in blocks of {row.side}", share=row.pixels, interval=row.pixels_interval),
    }
    lower, higher = figures[line.lower], figures[line.higher]
    difference = row.blocks - row.pixels if line.higher == "blocks" else row.pixels - row.blocks
    return Comparison(
        line=number,
        seed=seed,
        lower=lower,
        higher=higher,
        by=line.by or 0.0,
        difference=difference,
        sign=(difference > 0) - (difference < 0),
        p_value=row.p_value,
    )
