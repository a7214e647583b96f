"""What the tests of truncated ReLU share."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from guard_plugins.defenses.activations import layers
from guard_plugins.defenses.truncated_relu import Truncated
from torch import Tensor, nn


class Functional(nn.Module):
    """ReLUs in every spelling, one of them in place and one with a cap of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.convs = nn.ModuleList(nn.Conv2d(channels, 6, 3, padding=1) for channels in (3, 6, 6, 6, 6))
        self.norm = nn.BatchNorm2d(6)
        self.activation = nn.ReLU(inplace=True)
        self.out = nn.Linear(6 * 8 * 8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.convs[0](images))
        x = torch.relu(input=self.norm(self.convs[1](x)))
        x = self.convs[2](x).relu()
        x = F.relu6(input=20 * self.convs[3](x))
        x = F.relu(self.convs[4](x), inplace=True)
        x = self.activation(-x + 0.1)
        logits: Tensor = self.out(x.flatten(1))
        return logits


@pytest.fixture
def functional() -> Callable[[], nn.Module]:
    """functional() -> the same network, new each time."""
    return Functional


@pytest.fixture
def outputs_of() -> Callable[[nn.Module, Tensor], dict[str, Tensor]]:
    """outputs_of(model, images) -> what each truncated activation returns."""

    def run(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        seen: dict[str, list[Tensor]] = {}
        handles = [
            layer.register_forward_hook(
                lambda module, inputs, output, name=name: seen.setdefault(name, []).append(output)
            )
            for name, layer in layers(model, Truncated).items()
        ]
        with torch.no_grad():
            model.eval()(images)
        for handle in handles:
            handle.remove()
        return {name: torch.cat([part.flatten() for part in parts]) for name, parts in seen.items()}

    return run
