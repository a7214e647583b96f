"""AdvGAN: a generator that learns perturbations against a model, or against what it learned of one."""

import math
from collections.abc import Iterable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from guard import (
    LOSSES,
    Access,
    Goal,
    LearnedAttack,
    ModelSource,
    Rng,
    Step,
    ThreatModel,
    Training,
    Victim,
    assemble,
    hookimpl,
)
from guard_plugins.attacks.advgan_networks import Discriminator, Generator
from guard_plugins.models.small_cnn import SmallCNN


class Networks(nn.Module):
    """All that AdvGAN trains."""

    def __init__(self, image_shape: tuple[int, int, int], substitute: nn.Module | None) -> None:
        super().__init__()
        self.generator, self.discriminator = Generator(image_shape[0]), Discriminator(image_shape)
        self.substitute = substitute
        """What stands in for a model that only answers."""


class AdvGan(LearnedAttack):
    """A generator G answers an image with a perturbation of it, at the cost of one forward.

    It minimises L_adv + alpha L_GAN + beta L_hinge: that the model errs at x + G(x) (the margin of the logits, or the
    cross-entropy), that a discriminator, trained at the same time, takes x + G(x) for an image (least squares), and
    that the l2 length of G(x) does not exceed c. With distillation the model only answers: G learns against a
    substitute that is trained on its answers to images (static), or also to what G makes of them, round by round
    (dynamic).

    The paper leaves open alpha, beta, c and the number of rounds. Here G ends in a tanh times epsilon, so that nothing
    has to be cut off to stay in the ball, and c is a share of the longest perturbation that the threat allows. On MNIST
    (LeNet5, linf 0.3, four passes over 10,000 images) alpha 1 and no confidence reached 72 to 79 %, alpha 0.1 with a
    confidence of 1 95 %, alpha 0.01 with one of 5 99 %.
    """

    name = "advgan"
    paper = "Xiao, Li, Zhu, He, Liu, Song: Generating adversarial examples with adversarial networks, IJCAI 2018"
    norms = frozenset({"linf", "l2"})

    loss: Literal["margin", "cross-entropy"] = "margin"
    """L_adv."""
    alpha: NonNegativeFloat = 0.1
    """Weight of L_GAN."""
    beta: NonNegativeFloat = 1.0
    """Weight of L_hinge."""
    c: PositiveFloat = 0.5
    """The l2 length that L_hinge allows, as a share of the longest that the threat allows."""
    confidence: NonNegativeFloat = 5.0
    """The margin of the logits by which the model has to err, under the loss margin."""
    distillation: Literal["none", "static", "dynamic"] = "none"
    """none: it learns against the model itself, with its gradients; else the model only answers while it learns."""
    answers: Literal["logits", "labels"] = "logits"
    """What a distilled model answers."""
    substitute: ModelSource = SmallCNN()
    """What is trained on its answers."""
    distil_epochs: PositiveInt = 5
    """Passes in which the substitute learns, before the generator does and in each round."""
    rounds: PositiveInt = 5
    """Dynamic: how often the substitute learns again, also on what the generator makes by then. Each round asks about
    every image that is learned on once more."""
    epochs: PositiveInt = 10
    """Passes in which the generator learns."""

    @property
    def fit_access(self) -> Access:  # type: ignore[override]
        """Gradients of the model itself, or its answers."""
        return "gradients" if self.distillation == "none" else self.answers

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.distillation == "dynamic" and self.rounds >= self.epochs:
            raise ValueError(f"rounds is {self.rounds}; it must be below epochs, which is {self.epochs}")
        return self

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> Networks:
        """All networks with fresh weights."""
        distilled = self.distillation != "none"
        return Networks(image_shape, assemble(self.substitute, num_classes, image_shape) if distilled else None)

    def training(self) -> Training:
        """The generator's passes, and the substitute's around them."""
        recipe = super().training()
        if self.distillation == "none":
            return recipe
        times = 1 + (self.rounds if self.distillation == "dynamic" else 0)
        return recipe.model_copy(update={"epochs": self.epochs + times * self.distil_epochs, "validation": 0.0})

    def objective(self, step: Step, victim: Victim, goal: Goal) -> Tensor:
        """The paper's losses; the discriminator's is added, for it shares no weight with the generator's."""
        net = step.model
        assert isinstance(net, Networks)
        number = None if net.substitute is None else self._round(step.epoch)
        if net.substitute is not None and number is not None:
            return self._distilling(net, net.substitute, step, victim, number)
        points, perturbation = _made(net, step.images, step.threat)
        logits = victim.module(points) if net.substitute is None else _frozen(net.substitute.eval(), points)
        adversarial = self._adversarial(logits, goal).mean()
        natural = (_frozen(net.discriminator, points) - 1).square().mean()
        allowed = self.c * _longest(step.threat, step.images)
        hinge = (torch.linalg.vector_norm(perturbation.flatten(1), dim=1) - allowed).clamp(min=0).mean()
        real, fake = net.discriminator(step.images), net.discriminator(points.detach())
        judging = (real - 1).square().mean() + fake.square().mean()
        return adversarial + self.alpha * natural + self.beta * hinge + judging

    def craft(self, module: nn.Module, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        """The images with their perturbations."""
        assert isinstance(module, Networks)
        return _made(module, images, threat)[0]

    def _adversarial(self, logits: Tensor, goal: Goal) -> Tensor:
        """L_adv, a value for each image."""
        gain = LOSSES[self.loss](logits, goal)
        return (self.confidence - gain).clamp(min=0) if self.loss == "margin" else -gain

    def _round(self, epoch: int) -> int | None:
        """How often the substitute has learned before it does so in this epoch; None where the generator learns.

        The generator's passes are cut into equal pieces, and the substitute learns before each of them.
        """
        pieces = 1 + (self.rounds if self.distillation == "dynamic" else 0)
        for number in range(pieces):
            start = number * self.distil_epochs + round(self.epochs * number / pieces)
            if start <= epoch < start + self.distil_epochs:
                return number
        return None

    def _distilling(self, net: Networks, substitute: nn.Module, step: Step, victim: Victim, number: int) -> Tensor:
        """The cross-entropy between what the model and the substitute answer."""
        guess = substitute.train()(step.images)
        answers = self._answers("answers", step, victim, step.images, guess)
        step.note("agreement on clean images", _agreement(substitute, step.images, answers))
        loss = F.cross_entropy(guess, answers)
        if not number:
            return loss
        with torch.no_grad():  # the generator rests meanwhile, so that these are the same in each pass of the round
            points, _ = _made(net, step.images, step.threat)
        guess = substitute.train()(points)
        step.memory.pop(f"answers of round {number - 1}", None)
        answers = self._answers(f"answers of round {number}", step, victim, points, guess)
        step.note("agreement on adversarial images", _agreement(substitute, points, answers))
        return loss + F.cross_entropy(guess, answers)

    def _answers(self, name: str, step: Step, victim: Victim, points: Tensor, like: Tensor) -> Tensor:
        """What the model answers to points of the batch; it is asked about each of them once."""
        rows, known = step.targets, step.memory.get(name, like.new_zeros(0, like.shape[1]))
        missing = int(rows.max()) + 1 - len(known)
        if missing > 0:
            known = torch.cat([known, known.new_full((missing, like.shape[1]), math.nan)])
        if known[rows].isnan().any():
            known[rows] = self._asked(points, victim, like)
        step.memory[name] = known
        return known[rows]

    def _asked(self, points: Tensor, victim: Victim, like: Tensor) -> Tensor:
        """What the model answers, as probabilities (N, K)."""
        if self.answers == "logits":
            return victim.logits(points).softmax(1)
        return F.one_hot(victim.labels(points), like.shape[1]).to(like)


def _made(net: Networks, images: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """The adversarial images, and the perturbations before they are clipped to [0, 1]; inside the ball."""
    values: Tensor = net.generator(images)
    perturbation = threat.epsilon * values
    if threat.norm == "l2":
        lengths = torch.linalg.vector_norm(values.flatten(1), dim=1).clamp(min=1).view(-1, 1, 1, 1)
        perturbation = perturbation / lengths
    return (images + perturbation).clamp(0, 1), perturbation


def _longest(threat: ThreatModel, images: Tensor) -> float:
    """The l2 length of the longest perturbation that the threat allows."""
    return threat.epsilon * (math.sqrt(images[0].numel()) if threat.norm == "linf" else 1.0)


def _frozen(module: nn.Module, points: Tensor) -> Tensor:
    """What a module answers, with gradients to the points alone."""
    answer: Tensor = functional_call(
        module, {name: value.detach() for name, value in module.named_parameters()}, points
    )
    return answer


@torch.no_grad()
def _agreement(substitute: nn.Module, points: Tensor, answers: Tensor) -> Tensor:
    """Whether the substitute, as it will be used, answers the same class."""
    agrees: Tensor = substitute.eval()(points).argmax(1) == answers.argmax(1)
    return agrees.double()


@hookimpl
def guard_attacks() -> Iterable[type[LearnedAttack]]:
    """The attacks of this plugin."""
    return [AdvGan]
