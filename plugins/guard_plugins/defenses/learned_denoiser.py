"""A denoiser that learns to take Gaussian noise out of an image."""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn

from guard import Amount, Defense, LearnedDefense, Rng, Step, ThreatModel, Training, hookimpl
from guard_plugins.defenses.denoising_networks import DnCnn, restored


class LearnedDenoiser(LearnedDefense):
    """A residual network that learns the Gaussian noise in an image, which is then taken out of it.

    It learns on clean training images and noise alone, once for all networks, by the squared error of the noise. The
    noise is not clamped while it learns, as in the paper; what it leaves of an image is, and the gradient passes the
    clamping. Smaller than the paper's (depth 17, width 64), and on whole images, not on patches; the rate falls along
    a cosine. Differentiable, so that an adaptive attack goes straight through it.
    """

    name = "learned-denoiser"
    paper = (
        "Zhang, Zuo, Chen, Meng, Zhang: Beyond a Gaussian denoiser: residual learning of deep CNN for image denoising, "
        "IEEE Transactions on Image Processing 2017"
    )
    against = False

    sigma: Amount = 25 / 255
    """Standard deviation of the noise that it learns on, in units of the [0, 1] range: 25/255, 0.1."""
    depth: Annotated[int, Field(ge=2)] = 6
    """Convolutions."""
    width: PositiveInt = 32
    """Channels between them."""
    epochs: PositiveInt = 4
    """Passes over the images that it learns on."""
    batch_size: PositiveInt = 8
    """Images per update; of a network so small, many updates make more than large ones."""
    lr: PositiveFloat = 2e-3
    """The largest learning rate."""
    images: PositiveInt | None = 10000
    """It learns on so many images of the training split; on all of them where null."""

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> DnCnn:
        """A network for the noise."""
        return DnCnn(image_shape[0], self.depth, self.width)

    def training(self) -> Training:
        """By Adam, whose rate falls to 0."""
        return super().training().model_copy(update={"schedule": "cosine"})

    def objective(self, step: Step, model: nn.Module) -> Tensor:
        """The mean squared error of the noise that it finds."""
        noise = self._noise(step.images, step.generator)
        return (step.model(step.images + noise) - noise).square().mean()

    def seen(
        self,
        module: nn.Module,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        generator: Generator,
    ) -> dict[str, Tensor]:
        """How many decibels of PSNR each image gains."""
        noise = self._noise(images, generator)
        left = restored(images + noise, -module(images + noise)) - images
        return {"dB gained": 10 * torch.log10(_power(noise) / _power(left))}

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """The images without what it takes for noise."""
        return restored(images, -self.module(images))

    def _noise(self, images: Tensor, generator: Generator) -> Tensor:
        return self.sigma * torch.randn(images.shape, generator=generator).to(images)


def _power(noise: Tensor) -> Tensor:
    return noise.flatten(1).square().mean(1)


@hookimpl
def guard_defenses() -> Iterable[type[Defense]]:
    """The defenses of this plugin."""
    return [LearnedDenoiser]
