"""Running: compute what is missing of a plan, shard by shard."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from guard.building import framed, label_of
from guard.component import Component
from guard.config import EvaluationConfig
from guard.environment import device_of, versions
from guard.errors import ContractError, InputError
from guard.evaluation.fitting import Fitting
from guard.evaluation.images import load_images
from guard.evaluation.memory import give_back
from guard.evaluation.network import Network
from guard.evaluation.outcome import PICTURES, Bench
from guard.evaluation.plan import Planned, PlannedCell, Trial, name_of
from guard.evaluation.planner import Planner
from guard.evaluation.prepare import PROBED, Workshop
from guard.evaluation.result import Results
from guard.evaluation.rows import Ledger, Table
from guard.evaluation.store import Arrays, Store
from guard.keys import data_key, environment_key, key
from guard.layers import placed
from guard.learned import LearnedAttack
from guard.progress import Progress
from guard.registry import Registry
from guard.source import Data

SHARD = 256
"""Images that are kept together once they are computed, whatever the batch size; no batch is larger."""


def run(
    config: EvaluationConfig,
    registry: Registry,
    *,
    out: Path | None = None,
    keep_images: bool = False,
    no_train: bool = False,
    progress: Progress | None = None,
    store: Store | None = None,
) -> Results:
    """Evaluate a config. What the store holds already is not computed again, so a killed run goes on where it stopped.

    `keep_images` keeps the adversarial images in the result and, with `out`, under `out`/images. Raises InputError.
    """
    began, started = datetime.now(UTC), time.perf_counter()
    progress, store, device = progress or Progress(), store or Store(), device_of(config.device)
    environment = environment_key(device, config.precision)
    config = config.model_copy(update={"dataset": framed(config.dataset, config.sources)})
    data = load_images(config.dataset, config.limit, config.seed[0])
    limits = environment if config.max_queries is None else key(environment, config.max_queries)
    workshop = Workshop(config, store, device, progress, data[:PROBED].loaded(), no_train)
    fitting = Fitting(config, store, device, progress, workshop, data, no_train=no_train)
    planned = Planner(config, workshop, fitting, limits).plan()
    computing = _Computing(config, registry, progress, store, device, environment, keep_images)
    ledger = computing.compute(planned, data)
    table = Table.of(config, data, planned, ledger)
    if out is not None:
        table.write_attacks(out / "attacks")
        table.write_defenses(out / "defenses")
    if out is not None and keep_images:
        table.write_images(out / "images")
    return Results(
        run={
            "started": began.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - started, 3),
            "device": str(device),
            "computed_shards": ledger.computed,
            "cached_shards": ledger.cached,
            "image_shape": list(config.dataset.image_shape),
        }
        | sampled(data),
        config=config.model_dump(mode="json", by_alias=True),
        versions=versions(),
        plugins=origins(config, registry),
        cells=table.cells,
        worst_case=table.worst_case,
        pictures=table.pictures(ledger),
        standing=table.standing,
        adversarial=table.adversarial if keep_images else {},
    )


def fit(config: EvaluationConfig, progress: Progress, store: Store | None = None) -> LearnedAttack:
    """Let the one attack of a config learn against its one model. Raises InputError, ContractError."""
    device, store = device_of(config.device), store or Store()
    for name in ("threat", "goal", "seed", "model", "defenses", "knowledge"):
        if len(getattr(config, name)) != 1:
            raise InputError(f"an attack learns for one {name} at a time. Give one")
    config = config.model_copy(update={"dataset": framed(config.dataset, config.sources)})
    train = config.dataset.load("train")
    workshop = Workshop(config, store, device, progress, train[:PROBED].loaded(), no_train=False)
    fitting = Fitting(config, store, device, progress, workshop, train[:0], no_train=False)
    (planned,) = Planner(config, workshop, fitting, environment_key(device, config.precision)).plan()
    if planned.refused is not None:
        raise ContractError(planned.refused[1])
    attack = planned.trials[0].attack
    assert isinstance(attack, LearnedAttack)
    return attack.fitted(placed(attack.module, torch.device("cpu"), config.dtype), attack.note)


class _Computing:
    """The trials of a plan on their way."""

    def __init__(
        self,
        config: EvaluationConfig,
        registry: Registry,
        progress: Progress,
        store: Store,
        device: torch.device,
        environment: str,
        keep_images: bool,
    ) -> None:
        self._registry, self._progress, self._store = registry, progress, store
        self._environment, self._keep, self._scoring_draws = environment, keep_images, config.scoring_draws
        self._ledger, self._written = Ledger(), set[tuple[str, str]]()
        self._bench = Bench(
            device=device,
            dtype=config.dtype,
            batch_size=config.batch_size and min(config.batch_size, SHARD),
            num_classes=config.dataset.num_classes,
            store=store,
            keep_images=keep_images,
            bf16=config.precision == "bf16",
            max_queries=config.max_queries,
        )

    def compute(self, planned: Sequence[Planned], data: Data) -> Ledger:
        """Everything that the store does not hold."""
        self._progress.start("evaluating", sum(len(item.trials) for item in planned) * len(data))
        try:
            for number, shard in enumerate(data.batches(SHARD)):
                self._shard(planned, shard.loaded(), shown=PICTURES if number == 0 else 0)
        finally:
            self._progress.finish()
        return self._ledger

    def _shard(self, planned: Sequence[Planned], shard: Data, shown: int) -> None:
        """All trials on one shard. `shown`: how many adversarial images stay in memory, where not all are kept."""
        self._bench.crafted.clear()
        give_back()
        name, failed = data_key(shard), self._ledger.failed
        self._ledger.shards.append(name)
        for network in {id(item.victim): item.victim for item in planned if item.victim is not None}.values():
            if id(network) not in failed:
                try:
                    self._ledger.clean.setdefault(id(network), []).append(self._clean(network, shard, name))
                except ContractError as error:
                    failed[id(network)] = str(error)
        for item in planned:
            for way in item.trials:
                self._progress.advance(0, f"{item.cell.label} on {name_of(item.cell)} ({way.name})")
                left = len(shard)

                def advance(images: int) -> None:
                    nonlocal left
                    left -= images
                    self._progress.advance(images)

                if id(way) not in failed and id(way.scored_on) not in failed:
                    try:
                        outcome = self._outcome(item.cell, way, shard, name, advance)
                    except ContractError as error:
                        failed[id(way)] = str(error)
                    else:
                        if not self._keep:
                            outcome["adversarial"] = outcome["adversarial"][:shown].copy()
                        self._ledger.outcomes.setdefault(id(way), []).append(outcome)
                advance(left)

    def _clean(self, network: Network, shard: Data, name: str) -> Arrays:
        """How the network answers the clean images. Raises ContractError where it does so with NaN or infinity."""
        draws = self._scoring_draws if network.randomized else 1
        where = network.key and key("clean", network.key, self._environment, draws)
        kept = self._store.read(where, name) if where else None
        if kept is None:
            kept = self._bench.clean(network, shard, draws)
            if where:
                self._store.write(where, name, kept)
        broken = int((~np.isfinite(kept["logits"]).all(1)).sum())
        if broken:
            raise ContractError(f"the model returns NaN or infinity for {broken} of {len(shard)} clean images")
        return kept

    def _outcome(self, cell: PlannedCell, way: Trial, shard: Data, name: str, advance: Callable[[int], None]) -> Arrays:
        kept = self._store.read(way.key, name) if way.key else None
        if kept is not None and (not self._keep or len(kept["adversarial"]) == len(shard)):
            self._ledger.cached += (way.key, name) not in self._written
            return kept
        clean = self._ledger.clean[id(way.scored_on)][-1]
        who = f"attack '{cell.label}' from '{self._registry.origin(cell.attack).distribution}'"
        before = None
        if way.after is not None:
            before = way.after.attack.name, self._outcome(cell, way.after, shard, name, lambda images: None)
        outcome = self._bench.outcome(way.alone, shard, clean, who, advance, before)
        self._ledger.computed += 1
        if way.key:
            self._store.write(way.key, name, outcome)
            self._written.add((way.key, name))
        return outcome


def sampled(data: Data) -> dict[str, list[int]]:
    """The positions in the split of the images that were evaluated, where those are not simply the first ones."""
    return {} if torch.equal(data.index, torch.arange(len(data))) else {"indices": data.index.tolist()}


def origins(config: EvaluationConfig, registry: Registry) -> dict[str, str]:
    """Who provides each component that a config names."""
    found: dict[str, Component] = {f"dataset {config.dataset.name}": config.dataset}
    found |= {f"model {label_of(source)}": source for source in config.sources}
    found |= {f"attack {entry.attack.name}": entry.attack for entry in config.attacks}
    found |= {f"defense {member.name}": member for entry in config.defenses for member in entry.stack.members}
    return {name: str(registry.origin(item)) for name, item in found.items()}
