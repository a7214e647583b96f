"""ImageModel: any classifier as the one kind of model that the rest of guard sees."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guard.errors import InputError
from guard.source import ModelSource
from guard.weights import load_weights

Outputs = Literal["logits", "probabilities"]
ModelAccess = Literal["gradients", "logits", "labels"]
Net = nn.Module | Callable[[Any], Any]
"""A module, a function of a tensor, or a predictor: a function of an array."""


class ImageModel(nn.Module):
    """A classifier of images: (N, C, H, W) in [0, 1] to logits (N, K).

    It resizes (the shorter side, antialiased), crops the centre and normalises; calls `net`; and reads the logits out
    of what that returns: a tensor, the `.logits` of an object, the "logits" of a dict, the first of a tuple or list.
    Probabilities become their logarithms, one logit z the two logits [0, z], and labels int (N,) 0 and 1 (one-hot).

    A `net` that is no module gets a tensor where `access` is "gradients", else an array float32 (N, C, H, W), and may
    answer with an array. Modules that such a function calls are not seen: place them and put them in eval mode.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        net: Net,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resize: int | None = None,
        crop: int | None = None,
        outputs: Outputs = "logits",
        access: ModelAccess | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not callable(net):
            raise InputError(f"a {type(net).__name__} is no model. Give a module, or a function of images")
        _check_choice("outputs", outputs, ("logits", "probabilities"))
        _check_choice("access", access, ("gradients", "logits", "labels", None))
        for key, side in (("resize", resize), ("crop", crop)):
            if side is not None and not (isinstance(side, int) and side > 0):
                raise InputError(f"the model's {key} is {side!r}. Give a number of pixels: {key}=224")
        self.net = net
        self.outputs, self.access = outputs, access or "gradients"
        self.resize, self.crop, self.num_classes = resize, crop, num_classes
        # not among the saved weights: they are settings
        self.register_buffer("mean", _per_channel("mean", mean), persistent=False)
        self.register_buffer("std", _per_channel("std", std), persistent=False)
        if std is not None and not all(value > 0 for value in std):
            raise InputError(f"the model's std is {list(std)}. Give numbers above 0")
        if mean is not None and std is not None and len(mean) != len(std):
            raise InputError(
                f"the model's mean has {len(mean)} values and its std {len(std)}. Give one for each channel"
            )

    @property
    def plain(self) -> bool:
        """Whether `net` alone answers the same: nothing is done to images, and it is announced to return logits."""
        around = (self.mean, self.std, self.resize, self.crop)
        return self.outputs == "logits" and self.access == "gradients" and all(value is None for value in around)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K). Raises InputError for an answer of another kind than announced."""
        prepared = self._normalised(self._resized(images))
        if isinstance(self.net, nn.Module) or self.access == "gradients":
            answer = _first_logits(self.net(prepared))
            if not isinstance(answer, Tensor):
                raise InputError(
                    f"the model returns a {type(answer).__name__}. Give access='logits' or 'labels' to a predictor "
                    f"that is no torch module"
                )
        else:
            given = self.net(prepared.detach().cpu().float().numpy())
            answer = torch.as_tensor(np.asarray(_first_logits(given))).to(images.device)
        if len(answer.shape) not in (1, 2) or len(answer) != len(images):
            raise InputError(
                f"the model returns shape {tuple(answer.shape)} for {len(images)} images. Return logits (N, K)"
            )
        if not answer.is_floating_point():
            return self._one_hot(answer).to(images.dtype)
        return self._logits(answer if isinstance(self.net, nn.Module) else answer.to(images.dtype))

    def _resized(self, images: Tensor) -> Tensor:
        if self.resize is not None:
            height, width = images.shape[2:]
            short = min(height, width)
            size = [self.resize * height // short, self.resize * width // short]
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        if self.crop is not None:
            height, width = images.shape[2:]
            if self.crop > min(height, width):
                raise InputError(f"the model's crop is {self.crop}; images are {height} x {width}. Give resize too")
            top, left = round((height - self.crop) / 2), round((width - self.crop) / 2)
            images = images[:, :, top : top + self.crop, left : left + self.crop]
        return images

    def _normalised(self, images: Tensor) -> Tensor:
        for key, value in (("mean", self.mean), ("std", self.std)):
            if value is not None and len(value) != images.shape[1]:
                raise InputError(
                    f"the model's {key} has {len(value)} values; images have {images.shape[1]} channels. "
                    f"Give one for each channel"
                )
        if self.mean is not None:
            images = images - self.mean.to(images.device)[:, None, None]  # `net` may have been placed on its own
        if self.std is not None:
            images = images / self.std.to(images.device)[:, None, None]
        return images

    def _logits(self, answer: Tensor) -> Tensor:
        """Logits (N, K) of floats (N, K), (N, 1) or (N,)."""
        single = answer.flatten() if answer.dim() == 1 or answer.shape[1] == 1 else None
        if self.outputs == "logits":
            return answer if single is None else torch.stack([torch.zeros_like(single), single], 1)
        if len(answer) and ((answer < 0).any() or (answer > 1 + 1e-3).any()):
            low, high = answer.aminmax()
            raise InputError(f"the model's probabilities reach from {low:.3g} to {high:.3g}. Give outputs='logits'")
        both = answer if single is None else torch.stack([1 - single, single], 1)
        return both.clamp(min=torch.finfo(both.dtype).tiny).log()

    def _one_hot(self, labels: Tensor) -> Tensor:
        if self.access != "labels" or self.num_classes is None or labels.dim() != 1:
            raise InputError(
                f"the model returns {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}. "
                f"For a model that returns labels (N,) give access='labels' and num_classes"
            )
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.num_classes):
            reach = f"from {int(labels.min())} to {int(labels.max())}"
            raise InputError(f"the model's labels reach {reach}; num_classes is {self.num_classes}. Count from 0")
        return F.one_hot(labels.long(), self.num_classes)


def model(
    net: Net,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | None = None,
    crop: int | None = None,
    outputs: Outputs = "logits",
    access: ModelAccess | None = None,
    num_classes: int | None = None,
) -> ImageModel:
    """Wrap a classifier so that it takes images (N, C, H, W) in [0, 1] and returns logits (N, K).

    `mean` and `std`: what its training images were normalised with, one number a channel. `resize`, `crop`: in pixels.
    `outputs`: "logits" or "probabilities". `access`: how much of it an attack may see, "gradients", "logits" or
    "labels"; one of the last two for a predictor that is no torch module, which gets and returns arrays.
    `num_classes`: needed where it returns labels. An ImageModel is returned as it is. Raises InputError.
    """
    if isinstance(net, ImageModel):
        keys = {"mean": mean, "std": std, "resize": resize, "crop": crop, "access": access, "num_classes": num_classes}
        given = [key for key, value in keys.items() if value is not None]
        if given or outputs != "logits":
            raise InputError(f"{(given or ['outputs'])[0]} is given for an ImageModel. Give it where that was made")
        return net
    return ImageModel(
        net, mean=mean, std=std, resize=resize, crop=crop, outputs=outputs, access=access, num_classes=num_classes
    )


def assemble(
    source: ModelSource, num_classes: int, image_shape: tuple[int, int, int], *, new_head: bool = False
) -> ImageModel:
    """The model of a source: built, its weights loaded, and read as the source's keys say. Raises InputError.

    `new_head`: weights of a network for another number of classes leave the last layer as it was built.
    """
    net = source.build(num_classes, image_shape)
    if source.weights_file is not None:
        inner = net.net if isinstance(net, ImageModel) else net
        if not isinstance(inner, nn.Module):
            raise InputError(f"model '{source.name}' is no torch module and takes no weights. Leave weights out")
        load_weights(inner, source.weights_file, new_head=new_head)
    keys = ("mean", "std", "resize", "crop", "outputs", "access")
    given = {
        key: getattr(source, key) for key in keys if getattr(source, key) != type(source).model_fields[key].default
    }
    if not isinstance(net, ImageModel):
        return model(net, num_classes=num_classes, **given)
    if given:
        key = next(iter(given))
        raise InputError(f"model '{source.name}' sets its own {key}, and {key} is given for it too. Take one away")
    return net


def check_logits(logits: Tensor, num_classes: int, what: str) -> None:
    """Raise InputError unless `logits` have shape (N, num_classes); `what` is the model's name."""
    if logits.dim() != 2:
        raise InputError(f"model '{what}' returns shape {tuple(logits.shape)}. Give one that returns logits (N, K)")
    if logits.shape[1] != num_classes:
        raise InputError(
            f"model '{what}' returns {logits.shape[1]} logits for the {num_classes} classes of the data set. "
            f"Give a model with {num_classes} outputs; image files take num_outputs: {logits.shape[1]}"
        )


def _check_choice(key: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        choices = ", ".join(str(choice) for choice in known if choice)
        raise InputError(f"the model's {key} is {value!r}. Choose one of {choices}")


def _per_channel(key: str, values: Sequence[float] | None) -> Tensor | None:
    if isinstance(values, int | float):
        raise InputError(f"the model's {key} is {values}. Give one number for each channel: {key}=[{values}]")
    return None if values is None else torch.tensor([float(value) for value in values])


def _first_logits(answer: Any) -> Any:
    """What stands for logits in a model's answer."""
    if hasattr(answer, "logits"):
        return answer.logits
    if isinstance(answer, Mapping):
        if "logits" not in answer:
            keys = ", ".join(str(key) for key in answer)
            raise InputError(f"the model returns a dict of {keys}. Give one with 'logits'")
        return answer["logits"]
    if isinstance(answer, tuple | list):
        return next((item for item in answer if isinstance(item, Tensor | np.ndarray)), answer)
    return cast(Any, answer)
