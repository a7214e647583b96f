"""Schedule: the learning rate and the threat over a training."""

import math

from guard.recipe import Training
from guard.threat import ThreatModel

_RISE = 0.4  # share of the updates over which a cyclic learning rate goes up


def learning_rate(training: Training, done: float) -> float:
    """Of the update in whose middle the share `done` of the training is over."""
    match training.schedule:
        case "cyclic":
            return training.lr * min(done / _RISE, (1 - done) / (1 - _RISE))
        case "multi-step":
            return training.lr * 0.1 ** sum(done >= milestone for milestone in training.milestones)
        case "cosine":
            return training.lr * (1 + math.cos(math.pi * done)) / 2
        case _:
            return training.lr


def warmed(threat: ThreatModel, training: Training, done: float) -> ThreatModel:
    """What is trained against when the share `done` is over: less than the whole threat while it grows."""
    if done >= training.warmup or math.isinf(threat.epsilon):
        return threat
    return ThreatModel(norm=threat.norm, epsilon=threat.epsilon * done / training.warmup)
