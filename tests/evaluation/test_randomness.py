"""Victims that draw: what is not dropped, what repeats, and what is said about it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Defense, Report, Rng, ThreatModel

LINF = ThreatModel(norm="linf", epsilon=0.02)


class Jitter(Defense):
    """Random brightness."""

    name = "jitter"
    randomized = True
    size: float = 0.05

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images + self.size * rng.normal(()).view(-1, 1, 1, 1).to(images)


class Noisy(Defense):
    """Draws from torch's own generator, which it should not."""

    name = "noisy"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images + 0.05 * torch.randn(images.shape)


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    return guard.evaluate(model, data, **({"attacks": ["fgsm"], "threat": LINF} | settings))


class Fluke(Defense):
    """Shows another image on a share of the draws, whatever the image is."""

    name = "fluke"
    randomized = True
    share: float = 0.05

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        fluke = (rng.uniform(shape=()) < self.share).view(-1, 1, 1, 1)
        return torch.where(fluke, 1 - images, images)


def test_nothing_is_dropped_where_the_victim_draws(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = {"name": "pgd", "steps": 3}
    still, draws = evaluate(
        linear, (images, labels), attacks=[attack], defenses=["none", Jitter()], eot=4, scoring_draws=10
    ).cells
    assert (still.eot, still.scoring_draws) == (1, 1)
    assert still.forwards_per_image is not None
    assert still.forwards_per_image < 3
    through, smoothed, without = draws.candidates
    assert (smoothed.name, smoothed.backwards_per_image) == ("smoothed", 12)
    assert through.forwards_per_image == through.backwards_per_image == 12  # three steps of four draws
    assert without.forwards_per_image == 3
    assert (draws.status, draws.eot, draws.scoring_draws) == ("VALID", 4, 10)


def test_what_does_not_draw_is_asked_once_for_each_gradient(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    (cell,) = evaluate(linear, (images, labels), defenses=["gaussian-blur"]).cells
    assert cell.candidates[0].forwards_per_image <= 1


def test_one_lucky_draw_is_no_success(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    """A victim that errs on 5 % of its draws stands on 95 % of them, however often it is asked."""
    attacks = [{"name": "noise", "as": f"noise-{number}"} for number in range(5)]
    threat = ThreatModel(norm="linf", epsilon=1e-6)
    report = evaluate(
        linear, (images, labels), attacks=attacks, threat=threat, defenses=["none", Fluke()], scoring_draws=400
    )
    plain, worst = report.worst_case
    assert plain.clean_accuracy == plain.robust_accuracy
    right = linear(images).argmax(1) == labels
    flipped = linear(1 - images).argmax(1) == labels
    wanted = (0.95 * right + 0.05 * flipped).mean()
    assert worst.clean_accuracy == pytest.approx(float(wanted), abs=0.01)
    assert worst.robust_accuracy == pytest.approx(float(wanted), abs=0.01)
    assert worst.broken_only == dict.fromkeys((f"noise-{number}" for number in range(5)), 0)


def test_the_best_of_many_is_scored_on_fresh_draws(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Of attacks that do nothing none looks better for having been chosen, although each has other draws."""

    class Coin(Fluke):
        name = "coin"

        def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
            phase = 1e8 * images.double().flatten(1).sum(1)
            return torch.where(((rng.uniform(shape=()) + phase) % 1 < 0.5).view(-1, 1, 1, 1), 1 - images, images)

    attacks = [{"name": "noise", "as": f"noise-{number}"} for number in range(8)]
    threat = ThreatModel(norm="linf", epsilon=1e-6)
    (worst,) = evaluate(linear, (images, labels), attacks=attacks, threat=threat, defenses=[Coin()]).worst_case
    right, flipped = ((linear(some).argmax(1) == labels).double() for some in (images, 1 - images))
    wanted = float(((right + flipped) / 2).mean())
    # each image's share of 100 draws has a deviation of 0.05; the least of eight would lie 1.4 of them below
    assert worst.robust_accuracy == pytest.approx(wanted, abs=3 * 0.05 / len(images) ** 0.5)


def test_other_scoring_seeds_agree_within_the_interval(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    defenses = [Jitter(size=0.3)]
    one, two = evaluate(linear, (images, labels), attacks=["pgd"], defenses=defenses, seed=[0, 1]).cells
    for cell, other in ((one, two), (two, one)):
        assert cell.robust_accuracy_interval is not None
        low, high = cell.robust_accuracy_interval
        assert low < high
        assert other.robust_accuracy is not None
        assert low <= other.robust_accuracy <= high
    assert one.robust_accuracy != two.robust_accuracy


def test_foreign_draws_repeat_and_leave_the_generator(
    linear: nn.Module, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cells = []
    for number in range(2):
        monkeypatch.setenv("GUARD_CACHE", str(tmp_path / str(number)))
        torch.manual_seed(number)
        before = torch.get_rng_state()
        cells.append(evaluate(linear, (images, labels), defenses=[Noisy()]).cells[0])
        assert torch.equal(torch.get_rng_state(), before)
    assert cells[0].clean_accuracy == cells[1].clean_accuracy
    assert cells[0].robust_accuracy == cells[1].robust_accuracy


def test_what_draws_from_torch_itself_is_averaged_and_scored_like_any_other(
    linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    class Dropping(nn.Module):
        """A model that goes on dropping out in eval mode."""

        def forward(self, images: Tensor) -> Tensor:
            return linear(torch.nn.functional.dropout(images, 0.1, training=True))

    by_defense, by_model = (
        evaluate(model, (images, labels), defenses=[defense], eot=3).cells[0]
        for model, defense in ((linear, Noisy()), (Dropping(), "none"))
    )
    for cell in (by_defense, by_model):
        assert (cell.status, cell.eot, cell.scoring_draws) == ("VALID", 3, 100)
    assert by_model.forwards_per_image == 3
