"""Small convolutional networks."""

from collections.abc import Iterable

from torch import nn

from guard import InputError, ModelSource, hookimpl


class SmallCNN(ModelSource):
    """Two 3 x 3 convolutions (32 and 64 channels), each with ReLU and max-pooling, and two linear layers.

    For images of at least 8 x 8 with any number of channels. It has no batch normalisation, so that clean and
    adversarial images of one batch do not meet in its statistics.
    """

    name = "small-cnn"

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """See `ModelSource.build`. Raises InputError for smaller images."""
        channels, height, width = image_shape
        if min(height, width) < 8:
            raise InputError(f"model 'small-cnn' takes images of at least 8 x 8; these are {height} x {width}. Resize")
        return nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )


class StridedCNN(ModelSource):
    """Two 4 x 4 convolutions of stride 2 (16 and 32 channels) and two linear layers (100 units), with ReLUs.

    The MNIST network of convex-relaxation and fast adversarial training; a tenth of small-cnn's multiplications.
    """

    name = "strided-cnn"
    paper = "Wong, Kolter: Provable defenses via the convex outer adversarial polytope, ICML 2018"

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """See `ModelSource.build`. Raises InputError for images whose sides are no multiples of 4."""
        channels, height, width = image_shape
        if height % 4 or width % 4:
            raise InputError(
                f"model 'strided-cnn' takes images whose sides are multiples of 4; these are {height} x {width}. Resize"
            )
        return nn.Sequential(
            nn.Conv2d(channels, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), 100),
            nn.ReLU(),
            nn.Linear(100, num_classes),
        )


@hookimpl
def guard_models() -> Iterable[type[ModelSource]]:
    """The models of this plugin."""
    return [SmallCNN, StridedCNN]
