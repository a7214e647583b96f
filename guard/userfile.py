"""A function in a user's file as a component: `my_models.py:resnet` is a model, `./mine.py:purify` a defense."""

import hashlib
import inspect
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from guard.component import Component
from guard.defense import Defense
from guard.errors import ContractError, GuardError, InputError, described, suggestion
from guard.registry import load_file
from guard.rng import Rng
from guard.source import ModelSource

_PROBES = ((3, 32, 32), (1, 28, 28), (1, 8, 8))  # image shapes that a function is tried on, most usual first


class _FromFile(Component):
    """What both have in common."""

    path: str
    """The .py file."""
    function: str
    """What to take from it."""

    @model_validator(mode="after")
    def _present(self) -> Self:
        self._load()
        return self

    def fingerprint(self) -> str:
        """The file's content."""
        content = Path(self.path).expanduser().read_bytes()
        return hashlib.sha256(content).hexdigest() + super().fingerprint()

    def _load(self) -> Callable[..., Any]:
        module = load_file(Path(self.path).expanduser())
        found = getattr(module, self.function, None)
        if not callable(found):
            own = [name for name, item in vars(module).items() if inspect.isfunction(item) and name[0] != "_"]
            raise InputError(f"'{self.path}' has no function '{self.function}'. {suggestion(self.function, own)}")
        return found


class FileModel(_FromFile, ModelSource):
    """What a function of a user's file returns: a module, or `guard.model(...)`.

    The function is called with what its signature names among num_classes and image_shape. What it returns counts as
    trained; `weights: none` says that it is not.
    """

    name = "file"

    @property
    def label(self) -> str:
        """What reports call it."""
        return f"{Path(self.path).name}:{self.function}"

    @property
    def trained(self) -> bool:
        """Unless `weights: none` denies it."""
        return self.weights != "none"

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """What the function returns. Raises InputError where it asks for anything else, or returns nothing callable."""
        function = self._load()
        offered = {"num_classes": num_classes, "image_shape": image_shape}
        parameters = inspect.signature(function).parameters.values()
        for item in parameters:
            if item.name not in offered and item.default is item.empty and item.kind not in _OPTIONAL:
                raise InputError(
                    f"'{self.function}' in '{self.path}' asks for '{item.name}'; guard gives num_classes and "
                    f"image_shape. Give '{item.name}' a default"
                )
        given = {item.name: offered[item.name] for item in parameters if item.name in offered}
        try:
            built: nn.Module = function(**given)
        except GuardError:
            raise
        except Exception as error:
            text = f"'{self.function}' in '{self.path}' raised {described(error)}"
            raise InputError(f"{text}. Mend the function") from error
        if not callable(built):
            raise InputError(f"'{self.function}' in '{self.path}' returns a {type(built).__name__}. Return a module")
        return built


_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class _FunctionName:
    """The name of a class is 'file', that of an instance its function's, by which reports call it."""

    def __get__(self, item: "FileDefense | None", owner: type) -> str:
        return "file" if item is None else item.function


class FileDefense(_FromFile, Defense):
    """A function of a user's file, images (N, C, H, W) to images, as a preprocess; the same for equal images.

    It is differentiable where a probe finds that gradients flow: for random images the gradient is finite and not zero
    everywhere. Otherwise an attack's backward goes around it, as through the identity (BPDA).
    """

    name: ClassVar[str] = _FunctionName()  # type: ignore[assignment]

    @cached_property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Found out at first use, on images of 3 x 32 x 32, else 1 x 28 x 28, else 1 x 8 x 8.

        Raises InputError for a function that draws random numbers.
        """
        function = self._load()
        generator = torch.Generator().manual_seed(0)
        for shape in _PROBES:
            images = torch.rand(2, *shape, generator=generator)
            with torch.random.fork_rng(devices=[]):
                try:
                    with torch.no_grad():
                        one, other = function(images.clone()), function(images.clone())
                except Exception:  # it does not take images of this shape
                    continue
                if isinstance(one, Tensor) and not torch.equal(one.nan_to_num(), other.nan_to_num()):
                    raise InputError(
                        f"'{self.function}' in '{self.path}' draws random numbers, which a plain function may not. "
                        f"Write it as a guard.Defense with randomized = True, drawing from its rng"
                    )
                return _flows(function, images)
        return False

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        """What the function returns. Raises ContractError unless that is a tensor of the same shape."""
        result = self._load()(images)
        if not isinstance(result, Tensor) or result.shape != images.shape:
            what = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
            raise ContractError(
                f"defense '{self.function}' from '{self.path}' returns {what} for images of shape "
                f"{tuple(images.shape)}. Return a tensor of that shape"
            )
        return result.to(images)


def _flows(function: Callable[..., Any], images: Tensor) -> bool:
    """Whether a gradient that is finite and not zero everywhere comes back through a function."""
    leaf = images.clone().requires_grad_()
    with torch.enable_grad():
        try:
            result = function(leaf)
            (gradient,) = torch.autograd.grad((result * images).sum(), leaf)
        except Exception:  # it leaves torch, or detaches
            return False
    return bool(gradient.isfinite().all() and gradient.any())


FROM_FILE: dict[str, type[Component]] = {"model": FileModel, "defense": FileDefense}
"""The components that a function in a file stands for, by kind."""
