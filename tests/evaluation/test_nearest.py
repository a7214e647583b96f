"""Minimum-distance attacks: one run answers every epsilon, and the distances are reported."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Defense, Goal, MinimalAttack, Report, Rng, ThreatModel, Victim
from guard.evaluation.result import Cell
from guard.losses import margin

EPSILONS = {"linf": (0.01, 0.02, 0.05), "l2": (0.05, 0.1, 0.2)}
CALLS: list[int] = []
KILLS: list[bool] = []


class Exact(MinimalAttack):
    """The nearest point of a linear model with two classes in closed form; notes the images it is asked for."""

    name = "exact"
    further: float = 1e-4
    """How far beyond the boundary, as a share of the way."""
    pause: float = 0
    """Seconds that a call takes longer."""

    def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: str, rng: Rng) -> Tensor:
        CALLS.extend(rng.index.tolist())
        time.sleep(self.pause)
        if KILLS and (rng.index > 260).any():
            raise KeyboardInterrupt
        gradient, value, _ = victim.gradient(images, goal, margin)
        unit = gradient.sign() if norm == "linf" else gradient
        slope = (unit * gradient).flatten(1).sum(1)
        way = (1 + self.further) * (-value).clamp(min=0) / slope
        return (images + way.view(-1, 1, 1, 1) * unit).clamp(0, 1)


class Odd(Exact):
    """Gives up on images whose index is even, or on all; or fails at image 260, in the second shard."""

    name = "odd"
    how: Literal["even", "all", "crash", "range"] = "even"

    def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: str, rng: Rng) -> Tensor:
        points = super().nearest(victim, images, goal, norm, rng)
        late = bool((rng.index > 260).any())
        if late and self.how == "crash":
            raise RuntimeError("no way")
        if self.how == "range":
            return points - float(late)
        lost = rng.index % 2 == 0 if self.how == "even" else rng.index >= 0
        return torch.where(lost.view(-1, 1, 1, 1), images, points)


class Brighter(Defense):
    """Moves the boundary."""

    name = "brighter"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images + 0.02


class Ask(MinimalAttack):
    """Says that it needs logits, and asks for a gradient."""

    name = "ask"
    access = "logits"

    def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: str, rng: Rng) -> Tensor:
        victim.gradient(images, goal)
        return images


def threats(norm: str) -> list[ThreatModel]:
    return [ThreatModel(norm=norm, epsilon=epsilon) for epsilon in EPSILONS[norm]]  # type: ignore[arg-type]


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    CALLS.clear()
    return guard.evaluate(model, data, **({"attacks": [Exact()], "threat": threats("linf")} | settings))


def figures(cell: Cell) -> dict[str, Any]:
    return cell.model_dump(exclude={"key", "seconds", "curve", "candidates"})


@pytest.fixture
def distances(linear: Any, images: Tensor, labels: Tensor) -> Callable[[str], np.ndarray]:
    """The exact distance of each image from the boundary, 0 where it is classified wrongly."""

    def exact(norm: str) -> np.ndarray:
        with torch.no_grad():
            score = linear(images)[:, 1] * (2 * labels - 1)
        weight = linear.weight.detach().flatten()
        found = (score / (weight.abs().sum() if norm == "linf" else weight.norm())).clamp(min=0)
        return found.numpy()

    return exact


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("keyable", [True, False])
def test_one_run_answers_every_epsilon(
    norm: str,
    keyable: bool,
    linear: nn.Module,
    images: Tensor,
    labels: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not keyable:
        linear.stream = (number for number in range(3))  # type: ignore[assignment]
    together = evaluate(linear, (images, labels), threat=threats(norm)).cells
    assert sorted(CALLS) == [number for number in range(300) if number % 10], "once for each image that is right"
    for number, (threat, cell) in enumerate(zip(threats(norm), together, strict=True)):
        monkeypatch.setenv("GUARD_CACHE", str(tmp_path / str(number)))
        (alone,) = evaluate(linear, (images, labels), threat=threat).cells
        assert figures(alone) == figures(cell)
        assert set(alone.curve) < set(cell.curve)
        assert (cell.forwards_per_image, cell.backwards_per_image) == (0.9, 0.9)


def test_another_epsilon_takes_the_points_from_the_store(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    slow = [Exact(pause=0.1)]
    first = evaluate(linear, (images, labels), threat=threats("linf")[0], attacks=slow, batch_size=256).cells[0]
    more = evaluate(linear, (images, labels), threat=threats("linf"), attacks=slow)
    assert CALLS == []
    assert (more.run["computed_shards"], more.run["cached_shards"]) == (4, 2)
    assert figures(more.cells[0]) == figures(first)
    assert {cell.forwards_per_image for cell in more.cells} == {0.9}
    assert all((cell.seconds or 0) > 0.2 for cell in more.cells), "what the answer cost, in two shards"
    evaluate(linear, (images, labels))
    assert len(CALLS) == 270, "other parameters"
    evaluate(linear, (images, labels), threat=threats("l2"))
    assert len(CALLS) == 270, "another norm"
    evaluate(linear, (images, labels), seed=1)
    assert len(CALLS) == 270, "another seed"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_figures_are_the_closed_form(
    norm: str,
    linear: nn.Module,
    images: Tensor,
    labels: Tensor,
    robust: Callable[[ThreatModel], float],
    distances: Callable[[str], np.ndarray],
) -> None:
    cells = evaluate(linear, (images, labels), threat=threats(norm), attacks=[Exact(), "pgd"]).cells[::2]
    exact = distances(norm)
    for threat, cell in zip(threats(norm), cells, strict=True):
        assert cell.status == "VALID"
        assert cell.robust_accuracy == robust(threat)
        assert cell.median_distance == pytest.approx(np.median(exact[exact > 0]), rel=2e-4)
        curve = dict(cell.curve)
        assert list(curve) == sorted(curve)
        assert (curve[0.0], curve[max(curve)]) == (0.9, 0)
        for epsilon, share in cell.curve:
            assert share == np.mean((exact > 0) & (exact * (1 + 1e-4) > epsilon * (1 + 1e-5)))
        assert {each.epsilon: robust(each) for each in threats(norm)}.items() <= curve.items()
    pgd = evaluate(linear, (images, labels), attacks=["pgd"]).cells[0]
    assert (pgd.curve, pgd.max_distance) == ((), pytest.approx(0.01, rel=1e-5))


def test_where_half_is_not_found(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    cells = evaluate(linear, (images, labels), attacks=[Odd()], threat=ThreatModel(norm="l2", epsilon=9)).cells
    nothing = evaluate(linear, (images, labels), attacks=[Odd(how="all")]).cells
    assert cells[0].robust_accuracy == cells[0].curve[-1][1] == 120 / 300  # of ten images 1, 3, 5, 7, 9 are attacked
    assert cells[0].median_distance is not None
    assert cells[0].median_distance < 9
    for cell in nothing:
        assert (cell.status, cell.robust_accuracy, cell.median_distance) == ("VALID", 0.9, float("inf"))
        assert cell.curve == ((0.0, 0.9), (0.01, 0.9), (0.02, 0.9), (0.05, 0.9))
        assert cell.attack_success_rate == 0


def test_no_bound(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    """An epsilon of inf is the end of the curve, and what was not found stays robust."""
    endless = ThreatModel(norm="l2", epsilon=float("inf"))
    cell = evaluate(linear, (images, labels), attacks=[Odd()], threat=endless).cells[0]
    assert cell.curve[-1] == (float("inf"), 0.4)
    assert cell.robust_accuracy == 0.4
    evaluate(linear, (images, labels), attacks=[Odd()], threat=threats("l2"))
    assert CALLS == []


def test_a_distance_that_rounding_left_beyond_epsilon_fits(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Edge(Exact):
        """Moves by 0.02, as exactly as float32 can."""

        name = "edge"

        def nearest(self, victim: Victim, images: Tensor, goal: Goal, norm: str, rng: Rng) -> Tensor:
            gradient, _, _ = victim.gradient(images, goal)
            return images + 0.02 * gradient.sign()

    cell = evaluate(linear, (images, labels), attacks=[Edge()], threat=threats("linf")[1]).cells[0]
    assert (cell.max_distance or 0) > 0.02
    assert dict(cell.curve)[0.02] == cell.robust_accuracy


def test_least_likely_targets_are_those_of_each_victim(images: Tensor) -> None:
    """Two defenses on one network: their oblivious points aim at different classes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)  # so that a negative's least likely class is another
        data = images[:40], net(images[:40]).argmax(1)

    class Turns(Defense):
        """Negatives."""

        name = "turns"

        def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
            return 1 - images

    settings: dict[str, Any] = {"goal": {"targets": "least-likely"}, "knowledge": "oblivious"}
    settings["threat"] = threats("linf")[2]
    both = evaluate(net, data, defenses=[Turns(), Brighter()], **settings)
    alone = evaluate(net, data, defenses=[Brighter()], **settings)
    turned, brighter, expected = (made.adversarial for report in (both, alone) for made in report.pictures.values())
    assert (brighter == expected).all()
    assert (brighter != turned).any()


def test_a_point_too_far_away_is_projected(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    """One that overshoots breaks images whose distance does not fit, and the curve says what the distances say."""
    threat = threats("linf")[1]
    exact = evaluate(linear, (images, labels), threat=threat).cells[0]
    far = evaluate(linear, (images, labels), threat=threat, attacks=[Exact(further=0.5)]).cells[0]
    assert far.robust_accuracy == exact.robust_accuracy
    assert far.max_distance == pytest.approx(0.02, rel=1e-5)
    assert far.median_distance == pytest.approx(1.5 * (exact.median_distance or 0), rel=2e-4)
    assert dict(far.curve)[0.02] > (far.robust_accuracy or 0)


def test_the_attacker_takes_the_nearest_of_all_its_ways(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    adaptive, oblivious = evaluate(
        linear,
        (images, labels),
        defenses=[Brighter()],
        knowledge=["adaptive", "oblivious"],
        threat=threats("linf")[2],
        attacks=[Exact(further=0.2)],
    ).cells
    right = round(300 * (adaptive.clean_accuracy or 0))
    assert len(CALLS) == right + 300 + 300, "the oblivious attacker knows no victim, and its points serve both cells"
    assert [way.name for way in adaptive.candidates] == ["gradient", "smoothed", "oblivious"]
    assert 0.7 < (adaptive.clean_accuracy or 0) < 0.9
    assert oblivious.median_distance is not None
    assert adaptive.median_distance is not None
    assert adaptive.median_distance < oblivious.median_distance
    assert dict(adaptive.curve)[0.05] < dict(oblivious.curve)[0.05]


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        (Odd(how="crash"), "attack 'odd' from 'not registered' raised RuntimeError: no way (test_nearest.py:"),
        (Odd(how="range"), "attack 'odd' from 'not registered' left the pixel range [0, 1]: its images reach from -0."),
        (Ask(), "attack 'ask' from 'not registered': it declares access = 'logits' and asked the victim for gradients"),
    ],
    ids=["crash", "range", "access"],
)
def test_what_breaks_the_contract_is_invalid_at_every_epsilon(
    attack: MinimalAttack, text: str, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    cells = evaluate(linear, (images, labels), attacks=[attack, Exact()]).cells
    assert [cell.status for cell in cells] == ["INVALID", "VALID"] * 3
    for cell in cells[::2]:
        assert cell.reason.startswith(text)
        assert (cell.robust_accuracy, cell.median_distance, cell.curve) == (None, None, ())


def test_a_killed_run_goes_on(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    KILLS.append(True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(linear, (images, labels))
    KILLS.clear()
    report = evaluate(linear, (images, labels))
    assert set(CALLS) <= set(range(256, 300)), "the first shard was kept"
    assert (report.run["computed_shards"], report.run["cached_shards"]) == (3, 3)


def test_distances_survive_the_files(linear: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    report = evaluate(linear, (images, labels), attacks=[Odd(how="all"), Odd()], threat=threats("l2"))
    report.save(tmp_path)
    assert guard.load_run(tmp_path).cells == report.cells
