"""Asking: the one network of an experiment, trained where it must be, and the images it is asked about."""

import torch

from guard.building import framed
from guard.claims.config import Experiment
from guard.config import EvaluationConfig
from guard.defense import Stack
from guard.environment import device_of
from guard.evaluation.images import load_images
from guard.evaluation.network import Network
from guard.evaluation.prepare import PROBED, Workshop
from guard.evaluation.store import Store
from guard.progress import Progress
from guard.source import Data, ModelSource
from guard.threat import ThreatModel


def asked(
    experiment: Experiment, source: ModelSource, seed: int, progress: Progress
) -> tuple[Network, Data, torch.device, torch.dtype]:
    """The network, the images, and where and in which precision it is asked about them. Raises InputError."""
    dataset, device = framed(experiment.dataset, [source]), device_of(experiment.device)
    data = load_images(dataset, experiment.limit, seed)
    # nobody attacks: the threat is only what a training's validation tells of each epoch
    settings = EvaluationConfig.model_construct(
        dataset=dataset,
        model=(source,),
        threat=(ThreatModel(norm="linf", epsilon=8 / 255),),
        attacks=(),
        training=experiment.training,
        seed=(seed,),
    )
    workshop = Workshop(settings, Store(), device, progress, data[:PROBED].loaded(), no_train=False)
    workshop.announce([(source, Stack(), source.name)])
    return workshop.defended(source, Stack(), source.name).network, data, device, settings.dtype
