"""FAB: its projection against linear programs, and its distances against exact optima."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from guard_plugins.attacks.fab import FAB, _Task
from guard_plugins.attacks.hyperplane import onto_hyperplane
from scipy.optimize import linprog
from torch import Tensor, nn

from guard import Goal, Norm, Rng, Victim

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


def shortest(norm: Norm, image: np.ndarray, conditions: np.ndarray, bounds: np.ndarray) -> float:
    """The least norm (linf or l1) of d with conditions @ d <= bounds and image + d in [0, 1]; inf where none is."""
    size = len(image)
    eye, ones = np.eye(size), np.ones((size, 1))
    extra = ones if norm == "linf" else eye  # |d_i| <= s, or |d_i| <= s_i
    count = extra.shape[1]
    result = linprog(
        np.concatenate([np.zeros(size), np.ones(count)]),
        A_ub=np.block([[conditions, np.zeros((len(conditions), count))], [eye, -extra], [-eye, -extra]]),
        b_ub=np.concatenate([bounds, np.zeros(2 * size)]),
        bounds=[(-value, 1 - value) for value in image] + [(0, None)] * count,
    )
    return float(result.fun) if result.status == 0 else np.inf


def to_plane(norm: Norm, point: np.ndarray, normal: np.ndarray, gain: float) -> float:
    """The least norm of d with <normal, d> >= gain > 0 and point + d in [0, 1]."""
    if norm != "l2":
        return shortest(norm, point, -normal[None], np.array([-gain]))
    room = np.where(normal > 0, 1 - point, point)
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if np.abs(normal) @ np.minimum(middle * np.abs(normal), room) >= gain else (middle, high)
        )
    return float(np.linalg.norm(np.minimum(high * np.abs(normal), room)))


def length(norm: Norm, moved: Tensor) -> Tensor:
    return torch.linalg.vector_norm(moved.flatten(1).double(), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)


def planes(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Points (2, 20, 12), many of their values at 0 or 1, normals (20, 12) with zeros, gains (2, 20) within reach."""
    generator = torch.Generator().manual_seed(3)
    points = (torch.rand(2, 20, 12, generator=generator, dtype=torch.float64) * 2 - 0.5).clamp(0, 1)
    normal = torch.randn(20, 12, generator=generator, dtype=torch.float64)
    normal[:, :2] = 0
    sign = torch.randint(0, 2, (2, 20), generator=generator) * 2.0 - 1
    up = torch.where(sign[..., None] * normal > 0, 1 - points, points)
    most = (normal.abs() * up).sum(2)
    gain = sign * most * torch.rand(2, 20, generator=generator, dtype=torch.float64)
    return points.to(dtype), normal.to(dtype), gain.to(dtype)


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_is_the_nearest_point_of_hyperplane_and_box(norm: Norm) -> None:
    points, normal, gain = planes()
    ways = onto_hyperplane(points, normal, gain, norm)
    assert torch.allclose((ways * normal).sum(2), gain, rtol=0, atol=1e-12)
    assert (points + ways).min() >= -1e-15
    assert (points + ways).max() <= 1 + 1e-15
    for block, row in itertools.product(range(2), range(20)):
        sign = float(gain[block, row].sign())
        best = to_plane(norm, points[block, row].numpy(), sign * normal[row].numpy(), abs(float(gain[block, row])))
        assert float(length(norm, ways[block, row][None])) == pytest.approx(best, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_projection_does_not_depend_on_the_scale_or_on_other_rows(norm: Norm, scale: float) -> None:
    points, normal, gain = planes()
    ways = onto_hyperplane(points, normal, gain, norm)
    assert torch.allclose(onto_hyperplane(points, normal * scale, gain * scale, norm), ways, atol=1e-12)
    for rows in (slice(0, 1), slice(4, 7), slice(7, 20)):
        assert torch.equal(onto_hyperplane(points[:, rows], normal[rows], gain[:, rows], norm), ways[:, rows])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_projection_goes_to_the_corner_where_the_hyperplane_misses_the_box(norm: Norm, dtype: torch.dtype) -> None:
    points, normal, gain = planes(dtype)
    ways = onto_hyperplane(points, normal, gain.sign() * 1e3, norm)
    wanted = torch.where(gain[..., None] * normal > 0, 1 - points, -points) * (normal != 0)
    assert torch.allclose(ways, wanted, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_stays_where_nothing_can_be_gained(norm: Norm) -> None:
    points, normal, gain = planes()
    assert not onto_hyperplane(points, torch.zeros_like(normal), gain, norm).any()
    assert not onto_hyperplane(points, normal, torch.zeros_like(gain), norm).any()
    assert onto_hyperplane(points, normal * torch.nan, gain, norm).isnan().any()  # and does not hang


class Relu(nn.Module):
    """Four values, four hidden units, three classes, in float64: small enough to solve exactly."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        shapes: list[tuple[int, ...]] = [(4, 4), (4,), (3, 4), (3,)]
        self.weight, self.bias, self.out, self.offset = (
            nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes
        )
        self.bias.data -= 0.5 * self.weight.data.sum(1)  # kinks in the middle of the box

    def forward(self, points: Tensor) -> Tensor:
        return (points.flatten(1) @ self.weight.T + self.bias).relu() @ self.out.T + self.offset

    def optimum(self, norm: Norm, image: np.ndarray, label: int) -> float:
        """The exact distance to the nearest error, over all activation patterns and other classes."""
        with torch.no_grad():
            weight, bias, out, offset = (parameter.numpy() for parameter in self.parameters())
        best = np.inf
        for pattern in itertools.product([0.0, 1.0], repeat=4):
            active = np.array(pattern)
            flip = 1 - 2 * active  # flip * (weight @ x + bias) <= 0 keeps the pattern
            for other in {0, 1, 2} - {label}:
                gap = out[label] - out[other]
                line, level = gap * active @ weight, gap * active @ bias + offset[label] - offset[other]
                conditions = np.vstack([flip[:, None] * weight, line])
                bounds = -np.append(flip * (weight @ image + bias), line @ image + level)
                best = min(best, shortest(norm, image, conditions, bounds))
        return best


def corners(count: int, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Images in float64, about a third of their values at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, *shape, generator=generator, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)


def nearest(attack: FAB, model: nn.Module, images: Tensor, goal: Goal, norm: Norm) -> Tensor:
    index = torch.arange(len(images))
    shape = tuple(images.shape[1:])
    victim = Victim(model, images, Rng(0, index, shape, 1))
    return attack.nearest(victim, images, goal, norm, Rng(0, index, shape))


@pytest.fixture
def three_classes(linear: Callable[..., nn.Module]) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    return linear(weight, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 2])
def test_a_linear_model_is_solved_exactly(three_classes: nn.Module, norm: Norm, targets: int) -> None:
    images = corners(8, (3, 2, 2))
    labels = three_classes(images).argmax(1)
    found = nearest(FAB(steps=50, targets=targets), three_classes, images, Goal(labels), norm)
    assert Goal(labels).reached(three_classes(found)).all()
    assert found.min() >= 0
    assert found.max() <= 1
    logits, weight = three_classes(images).detach(), next(three_classes.parameters()).detach().numpy()
    for row, label in enumerate(labels.tolist()):
        best = min(
            to_plane(
                norm,
                images[row].flatten().numpy(),
                weight[j] - weight[label],
                float(logits[row, label] - logits[row, j]),
            )
            for j in {0, 1, 2} - {label}
        )
        assert best * (1 - 1e-9) <= float(length(norm, found - images)[row]) <= best * 1.01


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_a_targeted_goal_reaches_its_class_by_the_shortest_way(three_classes: nn.Module, norm: Norm) -> None:
    images = corners(8, (3, 2, 2))
    logits, weight = three_classes(images).detach(), next(three_classes.parameters()).detach().numpy()
    targets = logits.argsort(1)[:, 1]  # where one boundary binds: FAB looks at one at a time
    found = nearest(FAB(targets=9), three_classes, images, Goal((targets + 1) % 3, targets), norm)
    assert (three_classes(found).argmax(1) == targets).all()
    for row, target in enumerate(targets.tolist()):
        others = sorted({0, 1, 2} - {target})
        gap = (logits[row, target] - logits[row, others]).numpy()
        best = shortest(norm, images[row].flatten().numpy(), weight[others] - weight[target], gap)
        assert best * (1 - 1e-6) <= float(length(norm, found - images)[row]) <= best * 1.01


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_ends_on_the_linearized_boundary_from_anywhere(
    three_classes: nn.Module, make_victim: Make, norm: Norm
) -> None:
    images, points = corners(8, (3, 2, 2)), corners(8, (3, 2, 2), seed=4) * 0.2 + 0.4
    labels = three_classes(images).argmax(1)
    goal = Goal(labels).aim((labels + 1) % 3)
    task = _Task(make_victim(three_classes, images), images * 0.2 + 0.4, goal, norm, 3)
    ends = FAB(bias=0.5, overshoot=1)._step(task, points)
    inside = ((ends > 0) & (ends < 1)).flatten(1).all(1)  # elsewhere the hyperplane may miss [0, 1]
    logits = three_classes(ends).gather(1, torch.stack([labels, (labels + 1) % 3], 1))
    assert inside.any()
    assert torch.allclose(logits[inside, 0], logits[inside, 1])


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_a_relu_network_is_solved(norm: Norm) -> None:
    model, images = Relu(), corners(4, (1, 2, 2))
    labels = model(images).argmax(1)
    pairs = zip(images.flatten(1).numpy(), labels.tolist(), strict=True)
    best = torch.tensor([model.optimum(norm, image, label) for image, label in pairs])
    for targets in (0, 2):
        found = nearest(FAB(steps=50, targets=targets), model, images, Goal(labels), norm)
        assert Goal(labels).reached(model(found)).all()
        assert (length(norm, found - images) <= best * 1.01).all()
        assert (length(norm, found - images) >= best * (1 - 1e-6)).all()


def test_what_is_misclassified_already_stays_as_it_is(curved: nn.Module, images: Tensor, make_victim: Make) -> None:
    goal = Goal((curved(images).argmax(1) + 1) % 4)
    assert torch.equal(nearest(FAB(steps=3), curved, images, goal, "l2"), images)


def test_a_restart_starts_half_as_far_as_what_was_found(
    curved: nn.Module, images: Tensor, make_victim: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Tensor] = []
    run = FAB._run

    def watch(attack: FAB, task: object, point: Tensor, rows: Tensor, found: object) -> None:
        starts.append(length("l2", point - images[rows]))
        run(attack, task, point, rows, found)  # type: ignore[arg-type]

    monkeypatch.setattr(FAB, "_run", watch)
    inner = images * 0.2 + 0.4  # so that no start is clipped
    images = inner
    goal = Goal(curved(images).argmax(1))
    first = length("l2", nearest(FAB(steps=5), curved, images, goal, "l2") - images)
    found = nearest(FAB(steps=5, restarts=2), curved, images, goal, "l2")
    assert not starts[1].any()
    assert torch.allclose(starts[2], first.clamp(max=1) / 2, rtol=0.05)
    assert (length("l2", found - images) <= first * 1.001).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])  # its l1 cannot run
def test_it_is_as_near_as_torchattacks(curved: nn.Module, images: Tensor, norm: Norm) -> None:
    module = pytest.importorskip("torchattacks.attacks.fab")
    images, model = images.float(), curved.float()
    labels = model(images).argmax(1)
    peer = module.FAB(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=1e3, steps=50, n_classes=4)
    with torch.random.fork_rng():
        theirs = length(norm, peer(images, labels) - images)
    ours = length(norm, nearest(FAB(steps=50), model, images, Goal(labels), norm) - images)
    assert (ours <= theirs * 1.01).all()
