"""The network of MNIST and Fashion-MNIST that attacks learn against: trained here once, and kept."""

from pathlib import Path

import platformdirs
import torch
from safetensors.torch import load_model
from torch import nn

import guard
from guard import ThreatModel


def lenet5() -> nn.Module:
    """The layers of advertorch's LeNet5: two 3 x 3 convolutions (32 and 64 channels), two linear ones."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


def trained(dataset: str) -> nn.Module:
    """It, after five epochs on clean images."""
    folder = Path(platformdirs.user_cache_dir("guard")) / "benchmarks" / f"lenet5-{dataset}"
    torch.manual_seed(0)
    net, recipe = lenet5(), {"epochs": 5, "optimizer": "adamw", "lr": 0.002, "weight_decay": 0}
    if not (folder / "weights.safetensors").exists():
        guard.train(net, dataset, threat=ThreatModel(norm="linf", epsilon=0.3), out=folder, training=recipe)
    load_model(net, folder / "weights.safetensors")
    return net.eval()
