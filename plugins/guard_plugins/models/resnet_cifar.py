"""The residual network that most papers on CIFAR-10 train."""

from collections.abc import Iterable

from torch import Tensor, nn

from guard import ModelSource, hookimpl

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first block


class ResNet18Cifar(ModelSource):
    """Pre-activation ResNet-18 with a 3 x 3 stem and no max-pooling, for images of about 32 x 32.

    Its weights have the names of the code of Rice et al. ("Overfitting in adversarially robust deep learning").
    """

    name = "resnet18-cifar"
    paper = "He, Zhang, Ren, Sun: Identity mappings in deep residual networks, ECCV 2016"

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """See `ModelSource.build`."""
        return _PreActResNet18(num_classes, image_shape[0])


class _PreActResNet18(nn.Module):
    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        width = 64
        for number, (planes, stride) in enumerate(_STAGES, start=1):
            self.add_module(f"layer{number}", nn.Sequential(_Block(width, planes, stride), _Block(planes, planes, 1)))
            width = planes
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv1(images)
        for number in range(1, len(_STAGES) + 1):
            features = self.get_submodule(f"layer{number}")(features)
        logits: Tensor = self.linear(self.relu(self.bn(features)).mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Twice normalisation, ReLU and convolution, added to the input; where the shape changes, to its projection."""

    def __init__(self, width: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(width, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        changes = stride != 1 or width != planes
        self.shortcut = nn.Sequential(nn.Conv2d(width, planes, 1, stride, bias=False)) if changes else None

    def forward(self, images: Tensor) -> Tensor:
        active = self.relu1(self.bn1(images))
        shortcut = images if self.shortcut is None else self.shortcut(active)
        total: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active)))) + shortcut
        return total


@hookimpl
def guard_models() -> Iterable[type[ModelSource]]:
    """The models of this plugin."""
    return [ResNet18Cifar]
