"""Preparing: from a model source and a stack to the network that is attacked, trained where it must be."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from torch import Tensor, nn

from guard.building import built, calibrating, copied, given, label_of, to_train
from guard.classifier import ImageModel
from guard.config import EvaluationConfig
from guard.defense import Defense, Stack
from guard.environment import libraries
from guard.errors import ContractError, InputError, blamed
from guard.evaluation.bridges import Relaxed, bridges
from guard.evaluation.network import Network
from guard.evaluation.probing import check_stage, draws
from guard.evaluation.stages import Stages
from guard.evaluation.store import Store
from guard.keys import UnkeyableError, component_key, data_key, framework_source, key
from guard.layers import held, placed
from guard.learned_defense import LearnedDefense
from guard.progress import Progress
from guard.source import Data, ModelSource
from guard.stage import Stage
from guard.threat import ThreatModel
from guard.training.behind import behind
from guard.training.fabric import fabric
from guard.training.loop import estimate, train
from guard.victim import Access
from guard.weights import save_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric


PROBED = 16
"""Images on which it is seen what a network draws, and whether gradients come back through its stages."""


@dataclass(frozen=True)
class Defended:
    """A defended network, and what an attacker can make of it."""

    network: Network
    relaxed: Network | None
    """With the backward that the defense's `relax` gives; None where it gives none."""
    oblivious: Network | None
    """The same weights without what the stack adds after training; None where that is nothing."""


class Workshop:
    """Builds, trains and defends the networks of an evaluation, each once."""

    def __init__(
        self,
        config: EvaluationConfig,
        store: Store,
        device: torch.device,
        progress: Progress,
        probe: Data,
        no_train: bool,
    ) -> None:
        """`probe`: a few images, on which it is seen what a network draws and lets through."""
        self._config, self._store, self._device, self._progress = config, store, device, progress
        self._probe, self._no_train = probe, no_train
        self._dtype = config.dtype
        self._train_data: Data | None = None
        # by the identity of sources, members and modules, which live as long as the config and this workshop
        self._initial: dict[int, ImageModel] = {}
        self._recipes: dict[tuple[int, ...], str] = {}
        self._bases: dict[tuple[int, ...], nn.Module] = {}
        self._networks: dict[tuple[int, ...], Network] = {}
        self._bridges: dict[tuple[int, ThreatModel], tuple[tuple[str, Network], ...]] = {}
        self._stages = Stages(config, store, device, progress, self.training_data, no_train)

    def announce(self, wanted: Iterable[tuple[ModelSource, Stack, str]]) -> None:
        """Say what must be trained and about how long it takes. Raises InputError where that is forbidden, and where a
        stack is in no sensible order."""
        jobs: dict[str, tuple[str, float]] = {}
        for source, stack, label in wanted:
            left, _ = stack.split()
            _check_order(left)
            if not self._must_train(source, left):
                continue
            recipe = self._recipe(source, left)
            if recipe in jobs or self._store.weights(recipe).exists():
                continue
            name = label if left.members else label_of(source)
            if self._no_train:
                raise InputError(f"{name} must be trained, and --no-train forbids it. Give weights, or allow training")
            jobs[recipe] = (name, self._estimate(source, left, name))
        if jobs:
            parts = ", ".join(f"{name} (about {max(seconds, 1):.0f} s)" for name, seconds in jobs.values())
            self._progress.say(f"to train first: {parts}")

    def defended(self, source: ModelSource, stack: Stack, label: str) -> Defended:
        """The network of a source under a stack.

        Raises InputError where it must be trained and may not or cannot, ContractError where the defense fails at it.
        """
        left, right = stack.split()
        base = self._base(source, left, label)
        access: Access = getattr(base, "access", "gradients")
        model, relaxed = base, None
        with blamed(f"defense '{stack.label}'"):
            if any(member.overrides("modify") for member in right.members):
                with held(base):
                    model = right.modify(copied(base, label), self._calibration(right).to(self._dtype))
                model = model.to(self._device, self._dtype)
        stages: tuple[Defense, ...] = stack.stages
        if any(isinstance(stage, LearnedDefense) for stage in stages):
            bare = self._network(model, (), access)
            stages = tuple(self._stages.ready(stage, bare, label) for stage in stages)
        with blamed(f"defense '{stack.label}'"):
            if any(member.overrides("relax") for member in stack.members):
                stand_in = Relaxed(model, stack.relax(copied(model, label)))
                relaxed = self._network(stand_in, stages, access)
        for stage in stages:
            check_stage(stage, self._probed)
        changed = bool(stack.stages) or model is not base
        oblivious = self._network(base, (), access) if changed else None
        network = self._network(model, stages, access)
        if network.opaque:
            self._progress.say(f"{label} draws and does not say so: it is attacked and scored over draws")
        return Defended(network, relaxed, oblivious)

    def bridges(self, victim: Defended, threat: ThreatModel) -> tuple[tuple[str, Network], ...]:
        """Its network with other ways back, by name; none without stages and without a relaxed backward."""
        network = victim.network
        stages = tuple(stage for stage in network.stages if isinstance(stage, Defense))
        if not stages and victim.relaxed is None:
            return ()
        place = (id(network), threat)
        if place not in self._bridges:
            found = bridges(stages, threat)
            self._bridges[place] = tuple((name, self._network(network.model, it, network.access)) for name, it in found)
        return self._bridges[place]

    def _network(self, model: nn.Module, stages: Sequence[Stage], access: Access) -> Network:
        place = (id(model), *map(id, stages))
        if place not in self._networks:
            try:
                with held(model):  # whether it was handed over in training mode decides nothing
                    content: str | None = key(model, [component_key(stage) for stage in stages])  # type: ignore[arg-type]
            except UnkeyableError:
                content = None
            network = Network(model, tuple(stages), access, content)
            if not network.randomized:
                network = replace(network, opaque=draws(network, self._probed))
            self._networks[place] = network
        return self._networks[place]

    def _base(self, source: ModelSource, left: Stack, label: str) -> nn.Module:
        """The network as it stands after the stack's last training member."""
        place = _place(source, left)
        if place not in self._bases:
            if self._must_train(source, left):
                model = self._trained(source, left, label if left.members else label_of(source))
            else:
                model = built(source, self._config.dataset, self._config.seed[0])
            self._bases[place] = placed(model, self._device, self._dtype)
        return self._bases[place]

    def _must_train(self, source: ModelSource, left: Stack) -> bool:
        return bool(left.members) or not given(source)

    def _trained(self, source: ModelSource, left: Stack, label: str) -> nn.Module:
        path = self._store.weights(self._recipe(source, left))
        with self._store.alone(path, self._progress.say):
            kept = self._store.load(path, lambda: self._untrained(source, left))
            return kept or self._train(source, left, path, label)

    def _train(self, source: ModelSource, left: Stack, path: Path, label: str) -> nn.Module:
        model = self._untrained(source, left)
        with blamed(f"training {label}"):
            course = train(
                behind(left.stages, model),
                left,
                self.training_data(label),
                self._config.threat[0],
                self._config.training,
                num_classes=self._config.dataset.num_classes,
                seed=self._config.seed[0],
                fabric=self._fabric,
                progress=self._progress,
                what=f"training {label}",
                folder=path.with_suffix(""),
            )
            if course.kept is None:
                raise ContractError(f"{label}: {course.epochs[-1].events[-1]}. Train it otherwise")
        save_weights(model, path)
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        return model

    def _untrained(self, source: ModelSource, left: Stack) -> nn.Module:
        """A network of one's own to train, changed by the members of the stack that come before training."""
        model = copied(self._start(source), label_of(source)).to(self._device)
        with blamed(f"defense '{left.label}'"):
            return left.modify(model, self._calibration(left)).to(self._device)

    def _start(self, source: ModelSource) -> ImageModel:
        """Where training starts."""
        if id(source) not in self._initial:
            scratch = self._config.training.start == "scratch"
            self._initial[id(source)] = to_train(source, self._config.dataset, self._config.seed[0], scratch=scratch)
        return self._initial[id(source)]

    def _estimate(self, source: ModelSource, left: Stack, label: str) -> float:
        """About how long training takes; 0 where it fails, of which the training itself will tell."""
        data, threat = self.training_data(label), self._config.threat[0]
        try:
            with blamed(label):
                return estimate(
                    behind(left.stages, self._untrained(source, left)),
                    left,
                    data,
                    threat,
                    self._config.training,
                    num_classes=self._config.dataset.num_classes,
                    fabric=self._fabric,
                )
        except ContractError:
            return 0.0

    def training_data(self, label: str) -> Data:
        """The training split, for whoever is named. Raises InputError where there is none."""
        if self._train_data is None:
            try:
                self._train_data = self._config.dataset.load("train")
            except KeyError as error:
                raise InputError(f"{label} needs training images. Give train_data=(images, labels)") from error
        return self._train_data

    @cached_property
    def _probed(self) -> Tensor:
        return self._probe.floats().to(self._device, self._dtype)

    @cached_property
    def _fabric(self) -> "Fabric":
        return fabric(self._config.training, self._device)

    @cached_property
    def _training_key(self) -> str:
        return data_key(self.training_data("training"))

    def _calibration(self, part: Stack) -> Tensor:
        """Clean training images for those that modify a network; none are loaded where nobody does."""
        modifying = [member.name for member in part.members if member.overrides("modify")]
        if not modifying:
            return torch.empty(0, *self._config.dataset.image_shape, device=self._device)
        data = self.training_data(f"defense '{modifying[0]}'")
        return calibrating(data, self._config.seed[0]).floats().to(self._device)

    def _recipe(self, source: ModelSource, left: Stack) -> str:
        """A key of all that decides the trained weights; one of its own where something in it cannot be hashed."""
        place = _place(source, left)
        if place not in self._recipes:
            self.training_data(f"model '{label_of(source)}'")
            start, config = self._start(source), self._config
            try:
                with held(start):
                    self._recipes[place] = key(
                        start,
                        [component_key(member) for member in left.members],
                        config.training.model_dump_json(),
                        config.threat[0].model_dump_json() if left.members else None,
                        self._training_key,
                        config.seed[0],
                        framework_source("", "training", "evaluation"),
                        libraries(),
                        self._device.type,
                    )
            except UnkeyableError:
                self._recipes[place] = uuid4().hex
        return self._recipes[place]


def _check_order(left: Stack) -> None:
    for member in left.members:
        if isinstance(member, LearnedDefense) and member.must_learn:
            raise InputError(
                f"defense '{member.name}' learns in front of a trained network, and stands left of "
                f"'{left.members[-1].name}', which trains it. Write it to the right"
            )


def _place(source: ModelSource, left: Stack) -> tuple[int, ...]:
    return id(source), *map(id, left.members)
