"""No augmentation brings anything of the images back to the host, waits for the device, or draws from its generators.

There is no accelerator where this runs. What stands for one is the meta device: tensors there say that they are on it
and hold their values behind its back, and the rules of a device are enforced at every operation.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from guard import Defense, Registry

DEVICE = torch.device("meta")
HOST = torch.device("cpu")
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIED = {aten._to_copy.default, aten.copy_.default}
WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Waited(AssertionError):
    """What a device would have had to be waited for, or would have refused."""


class OnDevice(Tensor):
    """A tensor that is on the device, as far as anybody can see."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=DEVICE
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Waited(f"{func} outside of the device")


class Device(TorchDispatchMode):
    """Computes on the host what belongs on the device, and enforces its rules."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
        place = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            raise Waited(f"{func} draws from a global generator")
        if there:
            self._check(func, args, place, leaves)
        if place is not None:
            kwargs["device"] = HOST
        plain, plain_kwargs = tree_map_only(OnDevice, lambda leaf: leaf.values, (args, kwargs))
        result = func(*plain, **plain_kwargs)
        if func._schema.is_mutable:
            return args[0]
        goes = bool(there) if place is None else place == DEVICE
        return tree_map_only(Tensor, OnDevice, result) if goes else result

    def _check(self, func: Any, args: Any, place: torch.device | None, leaves: list[Tensor]) -> None:
        if func is aten._to_copy.default and place == HOST:
            raise Waited("a copy to the host")
        if func is aten.copy_.default and not isinstance(args[0], OnDevice):
            raise Waited("a copy into a tensor of the host")
        masks = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)] if func in INDEXED else []
        if any(mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            raise Waited(f"{func} with a mask")
        if WAITS & set(func.tags) and func not in INDEXED:
            raise Waited(f"{func} waits for a value")
        strangers = [leaf for leaf in leaves if not isinstance(leaf, OnDevice) and leaf.dim()]
        if strangers and func not in INDEXED | COPIED:
            raise Waited(f"{func} meets a tensor of the host")


class Python(TorchFunctionMode):
    """What never reaches an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.numpy, Tensor.tolist, Tensor.__array__) and isinstance(args[0], OnDevice):
            raise Waited(f"{func.__name__} of a tensor on the device")
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **(kwargs | {"device": HOST})).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def device() -> Iterator[None]:
    with Device(), Python():
        yield


def batch(channels: int) -> Tensor:
    return torch.rand(6, channels, 8, 8, generator=Generator().manual_seed(1))


OFFENDERS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0, 0, 0, 0]),
    "bool": lambda x: bool((x > 0).all()),
    "branch": lambda x: x if x.mean() > 0.5 else -x,
    "index": lambda x: x[x[0, 0, 0, 0].long()],
    "nonzero": lambda x: (x > 0.5).nonzero(),
    "where": lambda x: torch.where(x > 0.5),
    "masked_select": lambda x: x.masked_select(x > 0.5),
    "mask": lambda x: x[x > 0.5],
    "masked write": lambda x: x.clone().__setitem__(x[:, 0, 0, 0] > 0.5, x[:1]),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "repeats": lambda x: x.repeat_interleave(torch.ones_like(x[:, 0, 0, 0]).long(), 0),
    "cpu": lambda x: (2 * x).cpu(),
    "to": lambda x: x.to("cpu", torch.float64),
    "copy": lambda x: torch.empty(x.shape).copy_(x),
    "numpy": lambda x: x.numpy(),
    "array": lambda x: x.__array__(),
    "tolist": lambda x: x.mean((1, 2, 3)).tolist(),
    "iterated": lambda x: [int(value) for value in x[:, 0, 0, 0]],
    "a tensor of the host": lambda x: x + torch.ones(8),
    "global draw": lambda x: x + torch.rand_like(x),
    "global draw on the host": lambda x: x + torch.rand(8).to(x.device),
}


@pytest.mark.parametrize("name", OFFENDERS)
def test_each_way_to_wait_is_noticed(name: str) -> None:
    images = batch(3)
    with torch.random.fork_rng(devices=[]):
        OFFENDERS[name](images)  # on the host there is nothing wrong with it
    with device(), pytest.raises(Waited):
        OFFENDERS[name](OnDevice(images))


def test_what_a_device_does_by_itself_is_allowed() -> None:
    images = batch(3)

    def work(x: Tensor) -> Tensor:
        draws = torch.rand(len(x), generator=Generator().manual_seed(2))
        assert draws.min().item() >= 0  # of the host
        order = draws.argsort().to(x.device)
        x = x[order] + torch.arange(8, device=x.device) + torch.tensor([0.5], device=x.device) + torch.tensor(1.0)
        x[:, 0] = 0
        x[x < 0.7] = 0
        x.mul_(2)
        rows = torch.empty_like(x).scatter_(0, order[:, None, None, None].expand_as(x), x)
        return torch.where(rows > 1, rows, draws.to(x)[:, None, None, None]).view(6, -1)

    expected = work(images)
    with device():
        result = work(OnDevice(images))
    assert isinstance(result, OnDevice)
    assert result.device == DEVICE
    assert torch.equal(result.values, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_stays_on_the_device(registry: Registry, channels: int) -> None:
    found = [found for found in registry if issubclass(found, Defense) and found.overrides("augment")]
    assert {"shape-bias", "gaussian-augmentation", "style-mixing"} <= {each.name for each in found}
    images, problems = batch(channels), {}
    for each in found:
        defense = registry.create("defense", each.name)
        labels = torch.arange(6) % 4
        for targets in (torch.eye(4)[labels], *([] if defense.mixes_labels else [labels])):
            expected = defense.augment(images, targets, Generator().manual_seed(0))
            try:
                with device():
                    result = defense.augment(OnDevice(images), OnDevice(targets), Generator().manual_seed(0))
            except Exception as error:
                problems[each.name] = f"{type(error).__name__}: {error}"
                continue
            for one, other in zip(result, expected, strict=True):
                assert isinstance(one, OnDevice), each.name
                assert one.dtype == other.dtype, each.name
                torch.testing.assert_close(one.values, other, rtol=0, atol=0, msg=each.name)
    assert problems == {}
