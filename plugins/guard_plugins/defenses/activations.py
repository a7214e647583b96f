"""The activations of a network: finding its ReLUs, and putting others in their place."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from guard import Defense, InputError, held

BATCH = 64
"""Images per forward while a network is looked at."""
_CAPS: dict[Any, float] = {nn.ReLU: float("inf"), nn.ReLU6: 6.0}
_CAPS |= {function: float("inf") for function in (F.relu, torch.relu, torch.relu_, "relu", "relu_")} | {F.relu6: 6.0}


class Activation(nn.Module):
    """What stands in a ReLU's place, and is that ReLU until its defense tells it what else to do."""

    def __init__(self, cap: float) -> None:
        """`cap`: that ReLU's own, 6 for ReLU6 and else infinite."""
        super().__init__()
        self.straight = False
        """Whether the backward is that of a plain ReLU, whatever the forward."""
        self._own = cap

    def activated(self, inputs: Tensor) -> Tensor:
        """What it does: the activations, never in place."""
        return positive(inputs).clamp(max=self._own)

    def forward(self, inputs: Tensor) -> Tensor:
        """The activations, never in place."""
        activated = self.activated(inputs)
        if not self.straight:
            return activated
        plain = positive(inputs)
        return activated.detach() + (plain - plain.detach())


Kind = TypeVar("Kind", bound=Activation)


def positive(inputs: Tensor) -> Tensor:
    """A ReLU that is not counted as one that was kept."""
    return F.threshold(inputs, 0, 0)


def replaced(
    model: nn.Module, calibration: Tensor, kind: type[Kind], defense: Defense
) -> tuple[nn.Module, dict[str, Kind]]:
    """The model with an activation of this kind in the place of each ReLU, in place where it can be; and those by name.

    Replaces nn.ReLU, nn.ReLU6 and functional ReLUs that torch.fx finds in each module's own code. Code that it cannot
    trace, or that is another in train mode than in eval mode, stays as it is; what is kept is logged. `calibration`:
    some images. Raises InputError, in the defense's name, where there is no ReLU to replace, and where a network that
    uses a tensor again after an in-place ReLU would answer differently.
    """
    first, title = calibration[:BATCH], type(getattr(model, "net", model)).__name__
    before = answer(model, first)
    model = _replaced(model, kind, {})
    found, others = layers(model, kind), kept(model, first)
    if not found:
        raise InputError(
            f"defense '{defense.name}' finds no ReLU to replace in {title}, "
            f"which has {', '.join(others[:3]) or 'no activations'}. Write its activations as nn.ReLU modules"
        )
    if not torch.allclose(before, answer(model, first), rtol=1e-4, atol=1e-5):
        raise InputError(
            f"defense '{defense.name}': {title} uses a tensor again that a ReLU has changed in place. "
            f"Write its ReLUs without inplace"
        )
    log = logging.getLogger(type(defense).__module__)  # the plugin's, which the command line says
    log.info("%s: replaced %s; kept %s", defense.name, ", ".join(found), ", ".join(others) or "none")
    return model, found


def relaxed(model: nn.Module) -> nn.Module:
    """A copy with the same forward, and with the backward of plain ReLUs."""
    model = copy.deepcopy(model)
    for layer in layers(model, Activation).values():
        layer.straight = True
    return model


def layers(model: nn.Module, kind: type[Kind]) -> dict[str, Kind]:
    """The activations of a kind by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def kept(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """The activations that were not replaced: modules by name, and functional ReLUs that a forward on images meets."""
    modules = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention)
    ]
    with _Heard() as heard:
        answer(model, images)
    return (*modules, *(f"functional {name} ({count} times)" for name, count in heard.calls.items()))


def answer(model: nn.Module, images: Tensor) -> Tensor:
    """What the model answers in eval mode, on its device and in its precision; torch's generators are left as found."""
    at = next((tensor for tensor in [*model.parameters(), *model.buffers()] if tensor.is_floating_point()), images)
    with held(model), torch.no_grad(), torch.random.fork_rng([at.device] if at.is_cuda else []):
        logits: Tensor = model(images.to(at))
    return logits


@contextmanager
def listening(modules: Mapping[str, nn.Module], listener: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `listener(name, output)` at each output of the modules."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: listener(name, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replaced(module: nn.Module, kind: type[Activation], done: dict[nn.Module, nn.Module]) -> nn.Module:
    """What stands for the module; one that is used in several places stays one."""
    if module not in done:
        for name, child in module._modules.items():
            if child is not None:
                setattr(module, name, _replaced(child, kind, done))
        done[module] = kind(_CAPS[type(module)]) if type(module) in _CAPS else _traced(module, kind)
    return done[module]


def _traced(module: nn.Module, kind: type[Activation]) -> nn.Module:
    """The module with the functional ReLUs of its own code as modules, where it has such and can be traced."""
    if type(module).__module__.startswith("torch.nn."):
        return module
    mode, graphs = module.training, []
    try:
        for module.training in (True, False):
            graphs.append(_OwnCode().trace(module))
    except Exception:  # whatever the code of a network raises at a proxy: it cannot be traced
        return module
    finally:
        module.training = mode
    graph = graphs[0]
    found = [node for node in graph.nodes if node.op in ("call_function", "call_method") and node.target in _CAPS]
    if not found or str(graph) != str(graphs[1]):
        return module
    for number, node in enumerate(found):
        name = f"{kind.__name__.lower()}_{number}"
        module.add_module(name, kind(_CAPS[node.target]))
        with graph.inserting_after(node):
            new = graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    rebuilt = fx.GraphModule(module, graph, type(module).__name__)
    rebuilt._forward_hooks.update(module._forward_hooks)  # of a defense that stands further left
    return rebuilt


class _OwnCode(fx.Tracer):
    """Traces a module's own code and looks into none of its children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Heard(TorchFunctionMode):
    """Counts the functional ReLUs that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("relu", "relu_", "relu6"):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))
