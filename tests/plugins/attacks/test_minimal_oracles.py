"""Carlini and Wagner, DeepFool and L-BFGS against linear models and a small ReLU network that are solved exactly."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from guard_plugins.attacks.carlini_wagner import CarliniWagner
from guard_plugins.attacks.deepfool import DeepFool
from guard_plugins.attacks.lbfgs import LBFGS
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from guard import Goal, MinimalAttack, Rng, ThreatModel, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
ATTACKS = [
    pytest.param(CarliniWagner(searches=6, steps=120, learning_rate=0.03), "l2", id="cw"),
    pytest.param(DeepFool(), "l2", id="deepfool-l2"),
    pytest.param(DeepFool(), "linf", id="deepfool-linf"),
    pytest.param(LBFGS(), "l2", id="l-bfgs"),
]

IDS = ["cw", "deepfool-l2", "deepfool-linf", "l-bfgs"]


def nearest(attack: MinimalAttack, victim: Victim, images: Tensor, goal: Goal, norm: str = "l2") -> Tensor:
    rng = Rng(0, torch.arange(len(images)), tuple(images.shape[1:]))
    return attack.nearest(victim, images.clone(), goal, norm, rng)  # type: ignore[arg-type]


def length(points: Tensor, images: Tensor, norm: str = "l2") -> Tensor:
    return ThreatModel(norm=norm, epsilon=1).distance(points, images)  # type: ignore[arg-type]


def closest(norm: str, image: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> float:
    """The norm of the smallest d with slopes @ d + offsets >= 0 and image + d in [0, 1]; infinity where there is none.
    A linear program, over (d, t) with |d| <= t, tells whether there is one and solves linf."""
    size, one = len(image), np.ones((len(image), 1))
    unit = np.eye(size)
    rows = np.vstack([np.hstack([-slopes, 0 * offsets[:, None]]), np.hstack([unit, -one]), np.hstack([-unit, -one])])
    limits = np.concatenate([offsets, np.zeros(2 * size)])
    box = [*zip(-image, 1 - image, strict=True)]
    program = linprog([0] * size + [1], rows, limits, bounds=[*box, (0, None)])
    if not program.success:
        return float("inf")
    if norm == "linf":
        return float(program.fun)
    solved = minimize(
        lambda d: (d @ d, 2 * d),
        program.x[:-1],
        jac=True,
        method="SLSQP",
        bounds=box,
        constraints={"type": "ineq", "fun": lambda d: slopes @ d + offsets, "jac": lambda d: slopes},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert solved.success
    return float(np.linalg.norm(solved.x))


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("lead", [3.0, 9.0], ids=["inside", "box"])
@pytest.mark.parametrize(("attack", "norm"), ATTACKS)
def test_on_a_linear_model_the_nearest_boundary_is_found(
    attack: MinimalAttack,
    norm: str,
    lead: float,
    targeted: bool,
    linear: Callable[..., nn.Module],
    make_victim: Make,
    images: Tensor,
) -> None:
    """With a small lead of the label few pixels meet 0 or 1 on the way, with a large one many do."""
    images = (images[:1] + 0.2 * (images[:3] - 0.5)).clamp(0, 1)
    weight = torch.randn(3, 48, generator=torch.Generator().manual_seed(3)).double()
    model = linear(weight, torch.tensor([lead, 0, -1]).double() - weight @ images[0].flatten())
    goal = Goal(torch.zeros(3, dtype=torch.int64), torch.full((3,), 2) if targeted else None)
    points = nearest(attack, make_victim(model, images), images, goal, norm)
    assert goal.reached(model(points)).all()
    logits, rows = model(images).detach().numpy(), weight.numpy()
    assert (logits.argmax(1) == 0).all()
    for image, point, z in zip(images, points, logits, strict=True):
        ways = [[(2, 0), (2, 1)]] if targeted else [[(1, 0)], [(2, 0)]]  # in each pair the first overtakes the second
        best = min(
            closest(
                norm,
                image.flatten().numpy(),
                np.stack([rows[a] - rows[b] for a, b in way]),
                np.array([z[a] - z[b] for a, b in way]),
            )
            for way in ways
        )
        assert best * (1 - 1e-6) <= length(point[None], image[None], norm).item() <= best * 1.05


class Kinked(nn.Module):
    """A ReLU network of six pixels, four units and three classes, in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        shapes = (4, 6), (4,), (3, 4), (3,)
        self.parts = nn.ParameterList(torch.randn(shape, generator=generator).double() for shape in shapes)

    def forward(self, images: Tensor) -> Tensor:
        w, b, v, c = self.parts
        units = ((images.flatten(1) - 0.5)[:, None] * w).sum(2) + b
        return (units.relu()[:, None] * v).sum(2) + c

    def shortest(self, norm: str, image: np.ndarray, label: int) -> float:
        """The distance to the nearest error: the least over all patterns of active units and wrong classes."""
        w, b, v, c = (part.detach().numpy() for part in self.parts)
        units, found = w @ (image - 0.5) + b, []
        for pattern in itertools.product([0, 1], repeat=4):
            on = np.array(pattern)
            for other in {0, 1, 2} - {label}:
                gain = (v[other] - v[label]) * on
                slopes = np.vstack([(2 * on - 1)[:, None] * w, gain @ w])
                found.append(
                    closest(norm, image, slopes, np.append((2 * on - 1) * units, gain @ units + c[other] - c[label]))
                )
        return min(found)


@pytest.mark.parametrize(("param", "exact"), [*zip(ATTACKS, (4, 2, 2, 3), strict=True)], ids=IDS)
def test_on_a_small_network_most_nearest_errors_are_found(param: Any, exact: int, make_victim: Make) -> None:
    """None can be beaten, and at least `exact` of six are met; the others end in local minima."""
    attack, norm = param.values
    model, ratios = Kinked(), []
    images = torch.rand(6, 1, 2, 3, generator=torch.Generator().manual_seed(2)).double()
    goal = Goal(model(images).argmax(1))
    points = nearest(attack, make_victim(model, images), images, goal, norm)
    assert goal.reached(model(points)).all()
    for image, point, label in zip(images, points, goal.labels.tolist(), strict=True):
        best = model.shortest(norm, image.flatten().numpy(), label)
        ratios.append(length(point[None], image[None], norm).item() / best)
    assert min(ratios) >= 1 - 1e-6
    assert sum(ratio <= 1.05 for ratio in ratios) >= exact
