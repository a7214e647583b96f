"""The activations of a network: finding its ReLUs, and putting truncated ones in their place."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from guard import held

_CAPS: dict[Any, float] = {nn.ReLU: float("inf"), nn.ReLU6: 6.0}
_CAPS |= {function: float("inf") for function in (F.relu, torch.relu, torch.relu_, "relu", "relu_")} | {F.relu6: 6.0}


class Truncated(nn.Module):
    """min(max(x, 0), cap)."""

    cap: Tensor

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.register_buffer("cap", torch.tensor(cap))
        self.straight = False
        """Whether the backward is that of a plain ReLU, whatever the cap."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The truncated activations, never in place."""
        positive = F.threshold(inputs, 0, 0)  # a ReLU that is not counted as one that was kept
        capped = positive.clamp(max=self.cap.to(inputs.dtype))
        return capped.detach() + (positive - positive.detach()) if self.straight else capped


def truncate(model: nn.Module) -> nn.Module:
    """Put a Truncated, still without a cap of its own, in the place of each ReLU; changes the model where it can.

    Functional ReLUs are found by torch.fx in each module's own code. Code that it cannot trace, or that is another in
    train mode than in eval mode, stays as it is.
    """
    return _replaced(model, {})


def layers(model: nn.Module) -> dict[str, Truncated]:
    """The truncated activations by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Truncated)}


def kept(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """The activations that are not truncated: modules by name, and functional ReLUs that a forward on images meets."""
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


def _replaced(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """What stands for the module; one that is used in several places stays one."""
    if module not in done:
        for name, child in module._modules.items():
            if child is not None:
                setattr(module, name, _replaced(child, done))
        done[module] = Truncated(_CAPS[type(module)]) if type(module) in _CAPS else _traced(module)
    return done[module]


def _traced(module: nn.Module) -> nn.Module:
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
        name = f"truncated_{number}"
        module.add_module(name, Truncated(_CAPS[node.target]))
        with graph.inserting_after(node):
            new = graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    return fx.GraphModule(module, graph, type(module).__name__)


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
