"""HGD: a denoiser that learns from the network behind it."""

from collections.abc import Iterable, Mapping
from typing import Literal, Self

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Generator, Tensor, nn

from guard import Defense, Goal, InputError, LearnedDefense, Rng, Step, ThreatModel, Training, Victim, hookimpl
from guard_plugins.attacks.gradient_sign import FGSM
from guard_plugins.attacks.pgd import PGD
from guard_plugins.defenses.crafting import WithRadius, drawn
from guard_plugins.defenses.denoising_networks import UNet, restored


class Hgd(WithRadius, LearnedDefense):
    """A U-Net in front of a network, that learns to make its answers to adversarial images those to the clean ones.

    The images are adversarial for the bare network: a batch is attacked by FGSM or by PGD of two steps up to `steps`,
    each as often, and each image's perturbation is shortened to a share of it, drawn from 0 to 1. (In the paper, by
    FGSM and I-FGSM of 2, 4 and 8 steps with an epsilon of each image's own, on several networks.) The loss is the mean
    of the absolute difference between the answers, over all their values; the rate falls along a cosine. Much smaller
    than the paper's, whose `width` is 64, and so are its images and passes: give it more of all three where you can.

    Differentiable, so that an adaptive attack goes straight through it, and breaks it (Athalye, Carlini 2018).
    """

    name = "hgd"
    paper = (
        "Liao, Liang, Dong, Pang, Hu, Zhu: Defense against adversarial attacks using high-level representation guided "
        "denoiser, CVPR 2018"
    )

    guide: Literal["logits", "features"] = "logits"
    """Which answers it learns from: logits, or those of a layer before them (the paper's LGD and FGD)."""
    layer: str | None = None
    """The layer of guide features; where left out, the last one that answers with maps (C, H, W)."""
    steps: PositiveInt = 2
    """The most steps of PGD."""
    width: PositiveInt = 16
    """Channels of the U-Net's first level; the others have up to 4 times as many."""
    epochs: PositiveInt = 3
    """Passes over the images that it learns on."""
    batch_size: PositiveInt = 8
    """Images per update; of a network so small, many updates make more than large ones."""
    lr: PositiveFloat = 3e-3
    """The largest learning rate."""
    images: PositiveInt | None = 7000
    """It learns on so many images of the training split; on all of them where null."""

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.layer is not None and self.guide != "features":
            raise ValueError(f"layer is of guide features, and the guide is {self.guide}")
        return self

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> UNet:
        """A network for what is to be added."""
        return UNet(image_shape[0], self.width)

    def training(self) -> Training:
        """By Adam, whose rate falls to 0."""
        return super().training().model_copy(update={"schedule": "cosine"})

    def objective(self, step: Step, model: nn.Module) -> Tensor:
        """The distance between the answers to restored and to clean images. Raises InputError for an epsilon of inf."""
        images, generator = step.images, step.generator
        steps = int(torch.randint(1, self.steps + 1, (), generator=generator))
        adversarial = self._crafted(model, images, step.targets, self.own(step.threat, finite=True), steps, generator)
        share = torch.rand(len(images), generator=generator).to(images)
        points = images + share.view(-1, 1, 1, 1) * (adversarial - images)
        return self._distance(model, restored(points, step.model(points)), step)

    def seen(
        self,
        module: nn.Module,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        generator: Generator,
    ) -> dict[str, Tensor]:
        """Which images are answered as the clean ones without it: after PGD of `steps` steps, and clean."""
        adversarial = self._crafted(model, images, labels, self.own(threat, finite=True), self.steps, generator)
        answers = model(images).argmax(1)
        return {
            name: model(restored(points, module(points))).argmax(1) == answers
            for name, points in (("adversarial restored", adversarial), ("clean kept", images))
        }

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The images with what it adds."""
        return restored(images, self.module(images))

    def _crafted(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        steps: int,
        generator: Generator,
    ) -> Tensor:
        rng = drawn(images, generator)
        attack = FGSM() if steps == 1 else PGD(steps=steps)
        return attack.perturb(Victim(model, images, rng, drop=False), images, Goal(labels), threat, rng)

    def _distance(self, model: nn.Module, points: Tensor, step: Step) -> Tensor:
        """The mean absolute difference between the answers to points and to the clean images, with its graph."""
        if self.guide == "logits":
            return (model(points) - model(step.images)).abs().mean()
        victim = Victim(model, step.images, drawn(step.images, step.generator), drop=False)
        layer = self.layer or _top(victim)
        clean = victim.features(step.images, [layer])[layer]

        def apart(logits: Tensor, goal: Goal, features: Mapping[str, Tensor]) -> Tensor:
            return (features[layer] - clean).abs().flatten(1).mean(1)

        gradient, distances, _ = victim.gradient(points, Goal(step.targets), apart, [layer])
        return distances.mean() + (gradient * (points - points.detach())).flatten(1).sum(1).mean()


def _top(victim: Victim) -> str:
    """The last layer that answers with maps. Raises InputError where there is none."""
    maps = [name for name, shape in victim.layers.items() if len(shape) == 3]
    if not maps:
        raise InputError("no layer of the model answers with maps. Give defense 'hgd' a layer, or guide: logits")
    return maps[-1]


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [Hgd]
