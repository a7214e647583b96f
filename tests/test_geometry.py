"""Projections, ascents and uniform draws, against solvers that share no code with them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from guard import Rng, ThreatModel

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

NORMS = ["linf", "l2", "l1"]


def _cases(norm: str) -> list[tuple[Tensor, Tensor, float]]:
    """(points, images, epsilon): near and far points, images with values at the borders."""
    generator = torch.Generator().manual_seed(3)
    cases = []
    for scale in (1e-3, 0.1, 1.0, 30.0, 1e4):
        for epsilon in {"linf": (0.03, 0.7), "l2": (0.05, 0.6, 1.7), "l1": (0.2, 2.0, 5.0)}[norm]:
            images = (torch.rand(12, 1, 3, 4, generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
            moved = torch.randn(12, 1, 3, 4, generator=generator, dtype=torch.float64)
            cases.append((images + scale * moved, images, epsilon))
    return cases


def _bisected(norm: str, point: np.ndarray, image: np.ndarray, epsilon: float) -> np.ndarray:
    """The projection from its optimality conditions, by a long bisection on the multiplier of the ball."""
    if norm == "linf":
        return np.clip(np.clip(point, 0, 1), image - epsilon, image + epsilon)
    moved = point - image

    def at(multiplier: float) -> np.ndarray:
        if norm == "l2":
            shorter = moved / (1 + multiplier)
        else:
            shorter = np.sign(moved) * np.maximum(np.abs(moved) - multiplier, 0)
        return np.clip(image + shorter, 0, 1)

    order = 2 if norm == "l2" else 1
    if np.linalg.norm(at(0) - image, order) <= epsilon:
        return at(0)
    low, high = 0.0, 1e7
    for _ in range(300):
        middle = (low + high) / 2
        low, high = (low, middle) if np.linalg.norm(at(middle) - image, order) <= epsilon else (middle, high)
    return at(high)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_equals_a_long_bisection(norm: str) -> None:
    for points, images, epsilon in _cases(norm):
        projected = ThreatModel(norm=norm, epsilon=epsilon).project(points, images)
        for row in range(len(points)):
            expected = _bisected(norm, points[row].flatten().numpy(), images[row].flatten().numpy(), epsilon)
            np.testing.assert_allclose(projected[row].flatten().numpy(), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_no_feasible_point_is_nearer(norm: str, linear_optimum: Callable[..., np.ndarray]) -> None:
    """z is the projection of p on a convex set iff <p - z, c - z> <= 0 for all c; the worst c has a closed form."""
    for points, images, epsilon in _cases(norm):
        projected = ThreatModel(norm=norm, epsilon=epsilon).project(points, images)
        for row in range(len(points)):
            p, x, z = (t[row].flatten().numpy() for t in (points, images, projected))
            worst = linear_optimum(norm, p - z, x, epsilon)
            assert (p - z) @ (worst - z) <= 1e-8 * max(1, np.abs(p).max())


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_feasible_idempotent_and_alone_in_its_batch(norm: str) -> None:
    for points, images, epsilon in _cases(norm):
        threat = ThreatModel(norm=norm, epsilon=epsilon)
        projected = threat.project(points, images)
        assert threat.contains(projected, images).all()
        assert projected.min() >= 0
        assert projected.max() <= 1
        torch.testing.assert_close(threat.project(projected, images), projected, atol=1e-12, rtol=0)
        alone = torch.cat([threat.project(points[i : i + 1], images[i : i + 1]) for i in range(len(points))])
        assert torch.equal(alone, projected)


@pytest.mark.parametrize("norm", NORMS)
def test_what_lies_inside_stays_bit_for_bit(norm: str) -> None:
    images = torch.full((2, 1, 2, 2), 0.5)
    points = images + torch.tensor([1e-3, -2e-3, 0, 3e-3]).view(1, 2, 2)
    assert torch.equal(ThreatModel(norm=norm, epsilon=0.5).project(points, images), points)


@pytest.mark.parametrize("size", [8, 32, 224])
@pytest.mark.parametrize("norm", NORMS)
def test_float32_stays_inside_the_tolerance(norm: str, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    images = torch.rand(3, 3, size, size, generator=generator)
    for epsilon in {"linf": (1 / 255, 0.3), "l2": (0.1, 3.0), "l1": (1.0, 12.0)}[norm]:
        threat = ThreatModel(norm=norm, epsilon=epsilon)
        for scale in (0.01, 1.0, 1e6):
            points = images + scale * torch.randn(images.shape, generator=generator)
            projected = threat.project(points, images)
            assert threat.contains(projected, images).all()
            assert projected.dtype == torch.float32
            distance = threat.distance(projected, images)
            if scale > 0.5:  # not timid either: it uses the whole budget
                assert (distance > epsilon * 0.999).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e15, 1e30])
def test_huge_float32_points(norm: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, 4, 4, generator=generator)
    threat = ThreatModel(norm=norm, epsilon={"linf": 0.1, "l2": 0.4, "l1": 0.6}[norm])
    projected = threat.project(images + scale * torch.randn(images.shape, generator=generator), images)
    assert threat.contains(projected, images).all()
    assert (threat.distance(projected, images) > 0.9 * threat.epsilon).all()
    assert projected.min() >= 0
    assert projected.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_tiny_moves_are_kept(norm: str) -> None:
    images = torch.zeros(1, 1, 2, 2)
    points = images + 1e-30
    assert torch.equal(ThreatModel(norm=norm, epsilon=0.1).project(points, images), points)


def test_l1_projection_of_points_that_differ_by_orders_of_magnitude_fills_the_largest_first() -> None:
    images = torch.full((1, 1, 1, 5), 0.5, dtype=torch.float64)
    moved = torch.tensor([1e3, -1e18, 1e9, 1e-3, -1e30], dtype=torch.float64)
    projected = ThreatModel(norm="l1", epsilon=1.2).project(images + moved, images)
    torch.testing.assert_close(
        projected.flatten(), torch.tensor([0.5, 0, 0.7, 0.5, 0], dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_l2_projection_where_one_coordinate_dwarfs_the_others() -> None:
    image, moved = np.array([0.95, 0.5, 0.5, 0.5]), np.array([1e12, 0.3, -0.3, 0.1])
    projected = ThreatModel(norm="l2", epsilon=0.2).project(
        torch.tensor(image + moved).view(1, 1, 2, 2), torch.tensor(image).view(1, 1, 2, 2)
    )
    expected = _bisected("l2", image + moved, image, 0.2)
    np.testing.assert_allclose(projected.flatten().numpy(), expected, atol=1e-8)


def test_l2_projection_where_the_corner_of_the_range_touches_the_ball() -> None:
    images = torch.tensor([0.4, 0.2], dtype=torch.float64).view(1, 1, 1, 2)
    projected = ThreatModel(norm="l2", epsilon=1.0).project(torch.full_like(images, 2), images)  # 0.6^2 + 0.8^2 = 1
    torch.testing.assert_close(projected, torch.ones_like(images))


@pytest.mark.parametrize("norm", NORMS)
def test_nan_is_not_healed(norm: str) -> None:
    images = torch.full((2, 1, 2, 2), 0.5)
    points = images.clone()
    points[0, 0, 0, 0] = float("nan")
    projected = ThreatModel(norm=norm, epsilon=0.1).project(points, images)
    assert projected[0].isnan().any()
    assert torch.equal(projected[1], images[1])
    assert not ThreatModel(norm=norm, epsilon=0.1).contains(projected, images)[0]


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_without_a_bound_only_the_range_counts(norm: str) -> None:
    images = torch.full((1, 1, 1, 3), 0.5)
    points = torch.tensor([-3.0, 0.2, 9.0]).view(1, 1, 1, 3)
    threat = ThreatModel(norm=norm, epsilon=float("inf"))
    assert threat.project(points, images).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert threat.contains(points, images).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("norm", NORMS)
def test_no_displacement_of_that_length_gains_more(norm: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(5)
    point = torch.rand(4, 1, 3, 3, generator=generator)
    direction = torch.randn(4, 1, 3, 3, generator=generator)
    sizes = torch.tensor([0.1, 0.5, 1.0, 0.0])
    threat = ThreatModel(norm=norm, epsilon=0.5)
    step = threat.steepest_ascent(direction * scale, sizes, point)
    if norm == "l1":  # its room is the pixel range
        step = (point + step).clamp(0, 1) - point
    length = threat.distance(step, torch.zeros_like(step))
    assert (length <= sizes.double() * (1 + 1e-5) + 1e-7).all()
    gain = (step * direction).flatten(1).sum(1)
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    for _ in range(500):
        other = torch.randn(step.shape, generator=generator) ** 3
        other = other / torch.linalg.vector_norm(other.flatten(1), order, dim=1).view(-1, 1, 1, 1)
        other = other * sizes.view(-1, 1, 1, 1)
        if norm == "l1":
            other = (point + other).clamp(0, 1) - point
        assert ((other * direction).flatten(1).sum(1) <= gain + 1e-5).all()


def test_the_gain_is_the_dual_norm(linear_optimum: Callable[..., np.ndarray]) -> None:
    """In the middle of the range the best gain is size times the dual norm; for l1 with little room, a knapsack."""
    gradient = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    middle = torch.full_like(gradient, 0.5)
    flat = gradient.flatten(1)
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", float("inf"))):
        step = ThreatModel(norm=norm, epsilon=0.1).steepest_ascent(gradient, 0.1, middle)
        step = (middle + step).clamp(0.4, 0.6) - middle  # no more than size, whatever l1 pushes beyond the brim
        torch.testing.assert_close(
            (step * gradient).flatten(1).sum(1), 0.1 * torch.linalg.vector_norm(flat, dual, dim=1)
        )
    edge = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    stepped = (edge + ThreatModel(norm="l1", epsilon=2.0).steepest_ascent(gradient, 2.0, edge)).clamp(0, 1)
    for row in range(2):
        expected = linear_optimum("l1", flat[row].numpy(), edge[row].flatten().numpy(), 2.0)
        np.testing.assert_allclose(stepped[row].flatten().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_moves_nothing(norm: str) -> None:
    gradient = torch.zeros(2, 1, 2, 2)
    gradient[1, 0, 0, 0] = 1e-42  # a denormal is no zero
    step = ThreatModel(norm=norm, epsilon=0.5).steepest_ascent(gradient, 0.25, torch.full_like(gradient, 0.5))
    assert torch.equal(step[0], torch.zeros(1, 2, 2))
    assert step[1, 0, 0, 0] == pytest.approx(0.25)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_are_uniform_in_the_ball(norm: str, make_rng: Callable[..., Rng]) -> None:
    """Uniform in a ball of dimension d means: (distance / epsilon)^d is uniform on [0, 1], and no direction leads."""
    images = torch.full((3000, 1, 2, 3), 0.5)
    threat = ThreatModel(norm=norm, epsilon=0.4)
    start = threat.random_start(images, make_rng(images))
    assert threat.contains(start, images).all()
    assert kstest((threat.distance(start, images) / 0.4).pow(6).numpy(), "uniform").pvalue > 1e-3
    moved = (start - images).flatten(1)
    spread = moved.std(0)
    assert (moved.mean(0).abs() < 4 * spread / 3000**0.5).all()
    assert spread.max() / spread.min() < 1.1
    assert np.abs(np.corrcoef(moved.numpy().T) - np.eye(6)).max() < 0.08


def test_a_uniform_draw_in_l1_has_the_marginal_of_a_simplex(make_rng: Callable[..., Rng]) -> None:
    images = torch.full((3000, 1, 2, 3), 0.5)
    moved = ThreatModel(norm="l1", epsilon=0.5).random_start(images, make_rng(images)) - 0.5
    first = moved.flatten(1)[:, 0].double().abs() / 0.5
    assert kstest(first.numpy(), lambda t: 1 - (1 - t) ** 6).pvalue > 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_belong_to_the_image_and_not_to_its_place(norm: str, make_rng: Callable[..., Rng]) -> None:
    images = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threat = ThreatModel(norm=norm, epsilon=0.5)
    whole = threat.random_start(images, make_rng(images))
    order = torch.tensor([4, 0, 5])
    assert torch.equal(threat.random_start(images[order], make_rng(images[order], index=order)), whole[order])
    assert not torch.equal(threat.random_start(images, make_rng(images, seed=1)), whole)


def test_without_a_bound_a_start_lies_anywhere_in_the_range(make_rng: Callable[..., Rng]) -> None:
    images = torch.zeros(500, 1, 2, 2)
    start = ThreatModel(norm="l2", epsilon=float("inf")).random_start(images, make_rng(images))
    assert kstest(start.flatten().numpy(), "uniform").pvalue > 1e-3
