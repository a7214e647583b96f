"""Ensemble adversarial training: adversaries of other networks, too."""

import copy
from collections.abc import Iterable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr, field_validator
from torch import Generator, Tensor, nn

from guard import Attack, Defense, InputError, ModelSource, ThreatModel, assemble, held, hookimpl
from guard_plugins.attacks.gradient_sign import FGSM
from guard_plugins.defenses.adversarial_training import AdversarialTraining


class EnsembleAdversarialTraining(AdversarialTraining):
    """Trains on clean images and on FGSM's, crafted on a network that is drawn for each batch.

    It is one of the `sources`, which are trained already and stay as they are, or the network in training, each as
    likely. The loss is the mean of both cross-entropies, of a forward each in train mode. The attack leads away from
    the class that the drawn network predicts, not from the label, which the perturbation would give away to the network
    in training (as in the authors' code for MNIST; for ImageNet the paper steps towards the least likely class).
    Sources get the images as they are, even where a stack puts a preprocess before the network in training.
    """

    name = "ensemble-adversarial-training"
    paper = (
        "Tramer, Kurakin, Papernot, Goodfellow, Boneh, McDaniel: Ensemble adversarial training: attacks and defenses, "
        "ICLR 2018"
    )

    attack: Attack = FGSM()
    """Crafts the adversarial images: any attack on gradients, logits or labels, by name or mapping."""
    sources: Annotated[tuple[ModelSource, ...], Field(min_length=1)]
    """Trained networks for the same images and classes: models with weights, or path/to/file.py:function."""

    _built: "_Networks" = PrivateAttr(default_factory=lambda: _Networks())

    @field_validator("sources")
    @classmethod
    def _trained(cls, sources: tuple[ModelSource, ...]) -> tuple[ModelSource, ...]:
        for source in sources:
            if not source.trained and source.weights in (None, "none"):
                raise InputError(
                    f"source '{source.name}' of defense '{cls.name}' is not trained. "
                    f"Give it weights: FILE, or path/to/file.py:function"
                )
        return sources

    def adversary(
        self, model: nn.Module, images: Tensor, targets: Tensor, threat: ThreatModel, generator: Generator
    ) -> Tensor:
        """Adversarial images (N, C, H, W). Raises InputError where attack, epsilon or a source do not fit."""
        number = int(torch.randint(len(self.sources) + 1, (), generator=generator))
        if number < len(self.sources):
            model = self._network(self.sources[number], model, images)
        with held(model), torch.no_grad():
            predicted = model(images).argmax(1)
        return self.crafted(self.attack, model, images, predicted, self.own(threat), generator)

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Generator
    ) -> Tensor:
        """The mean of the cross-entropies on clean and on adversarial images."""
        return (F.cross_entropy(model(images), targets) + F.cross_entropy(model(adversarial), targets)) / 2

    def _network(self, source: ModelSource, model: nn.Module, images: Tensor) -> nn.Module:
        """The network of a source, built once for such images."""
        place = (id(source), images.shape[1:], images.device, images.dtype)
        if place not in self._built:
            with held(model), torch.no_grad():
                classes = model(images[:1]).shape[1]
            with torch.random.fork_rng(devices=[]):
                shape = (images.shape[1], images.shape[2], images.shape[3])
                network = copy.deepcopy(assemble(source, classes, shape))
            network = network.to(images.device, images.dtype).eval().requires_grad_(False)
            with torch.no_grad():
                answered = network(images[:1]).shape[1]
            if answered != classes:
                raise InputError(
                    f"source '{source.name}' of defense '{self.name}' returns {answered} logits, the network in "
                    f"training {classes}. Give one with {classes} outputs"
                )
            self._built[place] = network
        return self._built[place]


class _Networks(dict[tuple[Any, ...], nn.Module]):
    """Networks by what they were built for; what is pickled or copied is empty."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Networks, ()


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [EnsembleAdversarialTraining]
