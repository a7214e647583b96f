"""Running: compute what is missing of a plan, shard by shard, and put the report together."""

import importlib.metadata
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guard.config import EvaluationConfig
from guard.defense import Stack
from guard.errors import ContractError, InputError, NotApplicable
from guard.evaluation.images import load_images
from guard.evaluation.keys import environment_key, key
from guard.evaluation.outcome import PICTURES, Bench
from guard.evaluation.plan import PlannedCell, Trial, cells, trials
from guard.evaluation.prepare import Defended, Network, Workshop, data_key, label_of
from guard.evaluation.result import Cell, Pictures, Results, Status
from guard.evaluation.statistics import wilson
from guard.evaluation.store import Arrays, Store, write_arrays
from guard.evaluation.summary import Flags, best, candidate, figures, joined, worst_cases
from guard.goal import correct
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

    `keep_images` writes the adversarial images under `out`/images. Raises InputError.
    """
    return _Run(config, registry, progress or Progress(), store or Store(), keep_images).report(out, no_train)


class _Run:
    """One evaluation on its way."""

    def __init__(
        self, config: EvaluationConfig, registry: Registry, progress: Progress, store: Store, keep_images: bool
    ) -> None:
        self._config, self._registry, self._progress, self._store = config, registry, progress, store
        self._keep = keep_images
        self._device = device_of(config.device)
        self._environment = environment_key(self._device, config.precision)
        self._started = time.perf_counter()
        self._computed = self._cached = 0
        self._failed: dict[int, str] = {}  # id of a trial or a network -> why it broke its contract
        self._outcomes: dict[int, list[Arrays]] = {}
        self._clean: dict[int, list[Tensor]] = {}

    def report(self, out: Path | None, no_train: bool) -> Results:
        began = datetime.now(UTC)
        self._data = load_images(self._config.dataset, self._config.limit)
        planned = self._prepare(no_train)
        self._compute(planned)
        rows = [(cell, *self._cell(cell, victim, ways)) for cell, victim, ways in planned]
        clean = {
            row.key: correct(torch.cat(self._clean[id(victim.network)]), self._data.labels).numpy()
            for (_, victim, _), (_, row, _) in zip(planned, rows, strict=True)
            if id(victim.network) not in self._failed
        }
        report = Results(
            run={
                "started": began.isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - self._started, 3),
                "device": str(self._device),
                "computed_shards": self._computed,
                "cached_shards": self._cached,
            },
            config=self._config.model_dump(mode="json", by_alias=True),
            versions=versions(),
            plugins=self._plugins(),
            cells=[row for _, row, _ in rows],
            worst_case=worst_cases(rows, clean),
            pictures={
                row.key: self._pictures(outcome, victim.network)
                for (_, victim, _), (_, row, outcome) in zip(planned, rows, strict=True)
                if outcome is not None
            },
        )
        if self._keep and out is not None:
            self._write_images(out, [(row, outcome) for _, row, outcome in rows if outcome is not None])
        return report

    def _prepare(self, no_train: bool) -> list[tuple[PlannedCell, Defended, list[Trial] | str]]:
        """Build every network that the plan needs, and the trials of each cell; a string says why it has none."""
        config = self._config
        workshop = Workshop(config, self._store, self._device, self._progress, no_train)
        labels = unique([label_of(source) for source in config.model])
        networks: dict[tuple[str, str], Defended] = {}
        sources: dict[str, Network] = {}
        planned: list[tuple[PlannedCell, Defended, list[Trial] | str]] = []
        wanted = cells(config, labels)
        named = [(cell.model, cell.defense, _name(cell.model_label, cell.defense_label)) for cell in wanted]
        named += [(cell.source, Stack(), label_of(cell.source)) for cell in wanted if cell.source is not None]
        workshop.announce(named)
        for cell in wanted:
            place = (cell.model_label, cell.defense_label)
            if place not in networks:
                networks[place] = workshop.defended(cell.model, cell.defense, _name(*place))
            source = None
            if cell.source is not None:
                name, content = label_of(cell.source), cell.source.model_dump_json()
                if content not in sources:
                    sources[content] = workshop.defended(cell.source, Stack(), name).network
                source = sources[content]
            try:
                ways: list[Trial] | str = trials(cell, networks[place], source, self._environment)
            except NotApplicable as error:
                ways = str(error)
            planned.append((cell, networks[place], ways))
        if all(isinstance(ways, str) for _, _, ways in planned):
            raise InputError(str(planned[0][2]))
        return planned

    def _compute(self, planned: Sequence[tuple[PlannedCell, Defended, list[Trial] | str]]) -> None:
        config = self._config
        work = [(cell, way) for cell, _, ways in planned if not isinstance(ways, str) for way in ways]
        victims = list({id(victim.network): victim.network for _, victim, _ in planned}.values())
        self._progress.start("evaluating", len(work) * len(self._data))
        bench = Bench(
            device=self._device,
            dtype=torch.float64 if config.precision == "float64" else torch.float32,
            batch_size=min(config.batch_size or (128 if self._device.type == "cpu" else SHARD), SHARD),
            num_classes=config.dataset.num_classes,
            keep_images=self._keep,
            on_grid=self._data.on_grid,
            advance=lambda images: self._progress.advance(images),
        )
        try:
            for shard in self._data.batches(SHARD):
                self._shard(bench, shard, victims, work)
        finally:
            self._progress.finish()

    def _shard(
        self, bench: Bench, shard: Data, victims: Sequence[Network], work: Sequence[tuple[PlannedCell, Trial]]
    ) -> None:
        bench.crafted.clear()
        name = data_key(shard)
        for network in victims:
            if id(network) not in self._failed:
                self._clean.setdefault(id(network), []).append(self._clean_logits(bench, network, shard, name))
        for cell, way in work:
            if id(way) in self._failed or id(way.scored_on) in self._failed:
                bench.advance(len(shard))
                continue
            self._progress.advance(0, f"{cell.label} on {cell.model_label} + {cell.defense_label} ({way.name})")
            try:
                outcome = self._outcome(bench, cell, way, shard, name)
            except ContractError as error:
                self._failed[id(way)] = str(error)
                continue
            self._outcomes.setdefault(id(way), []).append(outcome)

    def _clean_logits(self, bench: Bench, network: Network, shard: Data, name: str) -> Tensor:
        where = network.key and key("clean", network.key, self._environment)
        kept = self._store.read(where, name) if where else None
        if kept is not None:
            logits = torch.from_numpy(kept["logits"])
        else:
            logits = bench.clean(network, shard)
            if where:
                self._store.write(where, name, {"logits": logits.numpy()})
        broken = int((~logits.isfinite().all(1)).sum())
        if broken:
            self._failed[id(network)] = f"the model returns NaN or infinity for {broken} of {len(shard)} clean images"
        return logits

    def _outcome(self, bench: Bench, cell: PlannedCell, way: Trial, shard: Data, name: str) -> Arrays:
        kept = self._store.read(way.key, name) if way.key else None
        if kept is not None and (not self._keep or len(kept["adversarial"]) == len(shard)):
            self._cached += 1
            bench.advance(len(shard))
            return kept | {"label": shard.labels.numpy()}
        clean = self._clean[id(way.scored_on)][-1]
        who = f"attack '{cell.label}' from '{self._registry.origin(cell.attack).distribution}'"
        outcome = bench.outcome(way, shard, clean, who)
        self._computed += 1
        if way.key:
            self._store.write(way.key, name, outcome)
        return outcome | {"label": shard.labels.numpy()}

    def _cell(self, cell: PlannedCell, victim: Defended, ways: list[Trial] | str) -> tuple[Cell, Arrays | None]:
        """The row of a cell, and per image what its best trial did; None where it has no valid outcome."""
        kept = [] if isinstance(ways, str) else [way.key for way in ways]
        identity = (kept, cell.label, cell.model_label, cell.defense_label, cell.knowledge, str(cell.goal), cell.seed)
        shared: dict[str, Any] = {
            "key": key(identity, str(cell.threat), cell.source_label, data_key(self._data)),
            "dataset": self._config.dataset.name,
            "model": cell.model_label,
            "defense": cell.defense_label,
            "goal": str(cell.goal),
            "norm": cell.threat.norm,
            "epsilon": cell.threat.epsilon,
            "knowledge": cell.knowledge,
            "seed": cell.seed,
            "label": cell.label,
            "attack": cell.attack.name or type(cell.attack).__name__,
            "attack_parameters": cell.attack.model_dump(mode="json", exclude={"name"}),
            "source": cell.source_label,
            "images": len(self._data),
        }
        if isinstance(ways, str):
            return Cell(**shared, status="NOT_APPLICABLE", reason=ways), None
        broken = [self._failed[at] for at in (id(victim.network), *map(id, ways)) if at in self._failed]
        if broken:
            return Cell(**shared, status="INVALID", reason=broken[0]), None
        outcomes = [joined(self._outcomes[id(way)]) for way in ways]
        outcome = best(outcomes) | {"label": outcomes[0]["label"]}
        logits = torch.cat(self._clean[id(victim.network)])
        clean = correct(logits, self._data.labels).numpy()
        status, reason = self._suspicion(victim.network, logits, clean)
        row = Cell(
            **shared | figures(outcome, clean, self._data.on_grid),
            status=status,
            reason=reason,
            candidates=tuple(candidate(way.name, o, clean) for way, o in zip(ways, outcomes, strict=True)),
        )
        return row, outcome

    def _suspicion(self, network: Network, logits: Tensor, clean: Flags) -> tuple[Status, str]:
        sums = logits.sum(1)
        if network.access != "labels" and logits.min() >= 0 and logits.max() <= 1 and (sums - 1).abs().max() < 1e-4:
            return "SUSPECT", 'the model\'s outputs look like probabilities. Give outputs="probabilities"'
        chance = 1 / self._config.dataset.num_classes
        if wilson(int(clean.sum()), len(clean))[0] <= chance:
            text = f"clean accuracy {clean.mean():.1%} is not above chance ({chance:.1%})"
            return "SUSPECT", f"{text}. Check the order of the classes and the normalisation"
        if any(stage.randomized for stage in network.stages):
            return "SUSPECT", "the defense is randomized, and each image was scored on one draw only"
        return "VALID", ""

    def _pictures(self, outcome: Arrays, network: Network) -> Pictures:
        names, first = self._config.dataset.class_names, self._data[:PICTURES]
        before = self._clean[id(network)][0][: len(first)].argmax(1)
        return Pictures(
            clean=first.floats().numpy(),
            adversarial=outcome["adversarial"][: len(first)],
            labels=tuple(names[label] for label in first.labels.tolist()),
            clean_predictions=tuple(names[label] for label in before.tolist()),
            predictions=tuple(names[label] for label in outcome["prediction"][: len(first)].tolist()),
        )

    def _plugins(self) -> dict[str, str]:
        config = self._config
        used = [config.dataset, *config.model, *(entry.attack for entry in config.attacks)]
        used += [member for entry in config.defenses for member in entry.stack.members]
        return {f"{item.kind} {item.name}": str(self._registry.origin(item)) for item in used}

    def _write_images(self, out: Path, rows: Sequence[tuple[Cell, Arrays]]) -> None:
        labels = [row.label for row, _ in rows]
        for row, outcome in rows:
            folder = out / "images" if labels.count(row.label) == 1 else out / "images" / row.key
            folder.mkdir(parents=True, exist_ok=True)
            arrays = {"adversarial": outcome["adversarial"], "indices": self._data.index.numpy()}
            write_arrays(folder / f"{row.label}.npz", arrays | {"labels": self._data.labels.numpy()})


def _name(model: str, defense: str) -> str:
    return model if defense == "none" else f"{model} + {defense}"


def device_of(name: str) -> torch.device:
    """The device of that name; auto takes a GPU where there is one. Raises InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' is not to be had here. Use auto or cpu") from error
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def unique(labels: Sequence[str]) -> dict[int, str]:
    """Number labels that repeat: 'a', 'a#2'."""
    return {
        place: label if (repeat := labels[:place].count(label)) == 0 else f"{label}#{repeat + 1}"
        for place, label in enumerate(labels)
    }


def versions() -> dict[str, str]:
    """What the run was computed with."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("guard-robustness", "torch", "torchvision", "kornia", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
