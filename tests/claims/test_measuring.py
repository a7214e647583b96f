"""The figures of lines that are no robust accuracies, against what they are by definition."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import guard
from guard import InputError
from guard.explaining.jumps import jumps, likeness


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))


class Two(nn.Module):
    """A layer that scales and one that sums up."""

    def __init__(self, cap: float = 1e9) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 2)
        self.cap = cap

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.last(self.first(images).clamp(max=self.cap).flatten(1)))


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    images = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, Two()(images).argmax(1)


def evaluated(data: Any, lines: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    threat = [{"norm": "linf", "epsilon": 0.01}, {"norm": "linf", "epsilon": 0.05}]
    settings = {"dataset": data, "model": Two(), "threat": threat, "attacks": ["fgsm", "noise"]}
    return {"claim": "X.", "evaluate": settings | keys, "expect": lines}


NEAR, FAR = {"attack": "fgsm", "epsilon": 0.01}, {"attack": "fgsm", "epsilon": 0.05}


def test_a_jump_is_the_median_over_images_of_what_the_attack_moves(data: tuple[Tensor, Tensor]) -> None:
    line = {"figure": "jump", "layer": "first", "lower": NEAR, "higher": FAR}
    found = guard.claim(evaluated(data, [line, line | {"lower": FAR, "higher": NEAR}]))
    row = found.comparisons[0]
    keys = {"threat": guard.ThreatModel(norm="linf", epsilon=0.05), "keep_images": True}
    report = guard.evaluate(Two(), data, attacks=["fgsm"], **keys)  # type: ignore[arg-type]
    (adversarial,) = map(torch.from_numpy, report.adversarial.values())
    with torch.no_grad():
        before, after = (Two().first(images).flatten(1) for images in (data[0], adversarial))
    expected = ((after - before).norm(dim=1) / before.norm(dim=1)).numpy()
    assert row.higher.value == pytest.approx(float(np.median(expected)), rel=1e-5)
    assert row.higher.value > 4 * row.lower.value
    assert row.holds
    assert found.comparisons[1].reversed
    assert found.verdict == "contradicted"
    (chart, _) = found.charts
    assert chart.places == ("first", "last")
    assert list(chart.lines.values())[1][0] == pytest.approx(row.higher.value)


class Half(guard.Attack):
    """Moves every second image by as much as it may."""

    name = "half"
    access = "labels"
    stops: bool = False

    def perturb(self, victim: Any, images: Tensor, goal: Any, threat: Any, rng: guard.Rng) -> Tensor:
        moved = (images + threat.epsilon * rng.fold(0).signs()).clamp(0, 1)
        return torch.where((rng.index % 2 == 0).view(-1, 1, 1, 1), moved, images)


def test_images_that_are_not_moved_have_no_jump_and_no_likeness(data: tuple[Tensor, Tensor]) -> None:
    lines = [{"figure": name, "lower": {"epsilon": 0.01}, "higher": {"epsilon": 0.05}} for name in ("jump", "likeness")]
    lines[0]["layer"] = "first"
    rows = guard.claim(evaluated(data, lines, attacks=[Half()])).comparisons
    threat = guard.ThreatModel(norm="linf", epsilon=0.05)
    report = guard.evaluate(Two(), data, attacks=[Half()], threat=threat, keep_images=True)
    (kept,) = map(torch.from_numpy, report.adversarial.values())
    even = torch.arange(70) % 2 == 0
    moved = jumps(Two(), data[0][even], kept[even])["first"]
    assert moved.min() > 0
    assert rows[0].higher.value == pytest.approx(float(np.median(moved.numpy())), rel=1e-5)
    assert rows[1].higher.value == pytest.approx(float(likeness((kept - data[0])[even]).mean()), abs=1e-5)


def test_attacks_go_on_where_their_images_are_compared(data: tuple[Tensor, Tensor]) -> None:
    """With an early stop PGD would leave an image where it first fell: as far as a smaller budget leaves it."""
    threat = [{"norm": "linf", "epsilon": 0.2}, {"norm": "linf", "epsilon": 0.3}]
    line = {"figure": "jump", "layer": "first", "lower": {"epsilon": 0.2}, "higher": {"epsilon": 0.3}}
    attack = {"name": "pgd", "steps": 20, "step_size": 0.05}
    (row,) = guard.claim(evaluated(data, [line], attacks=[attack], threat=threat)).comparisons
    keys = {"threat": guard.ThreatModel(norm="linf", epsilon=0.3), "attacks": [attack], "keep_images": True}
    for stop in (True, False):
        report = guard.evaluate(Two(), data, early_stop=stop, **keys)  # type: ignore[arg-type]
        (kept,) = map(torch.from_numpy, report.adversarial.values())
        median = float(np.median(jumps(Two(), data[0], kept)["first"].numpy()))
        assert (row.higher.value == pytest.approx(median, rel=1e-4)) is not stop
        if stop:
            assert row.higher.value > 1.2 * median


def test_a_layer_that_is_not_there(data: tuple[Tensor, Tensor]) -> None:
    line = {"figure": "jump", "layer": "frist", "lower": NEAR, "higher": FAR}
    with pytest.raises(InputError, match=r"a line's layer is 'frist', .* Did you mean 'first'"):
        guard.claim(evaluated(data, [line]))


def test_likeness_is_the_mean_cosine_with_the_others() -> None:
    moved = torch.randn(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    moved[2] = 0
    found = likeness(moved)
    for one in range(9):
        others = [other for other in range(9) if other not in (one, 2)]
        cosines = [torch.cosine_similarity(moved[one].flatten(), moved[other].flatten(), dim=0) for other in others]
        if one == 2:
            assert found[one].isnan()
        else:
            assert float(found[one]) == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-6)
    sizes = torch.arange(1, 6)[:, None, None, None]
    assert likeness(moved[:1] * sizes).tolist() == pytest.approx([1] * 5)
    assert likeness(moved[:1]).isnan().all()


def test_seconds_are_of_one_measurement_and_not_tested(data: tuple[Tensor, Tensor]) -> None:
    lower, higher = {"attack": "fgsm"}, {"attack": "pgd"}
    threat = {"norm": "linf", "epsilon": 0.001}
    attacks = ["fgsm", {"name": "pgd", "steps": 400}]
    line = {"figure": "seconds", "lower": lower, "higher": higher, "by": 0.5}
    found = guard.claim(evaluated(data, [line], attacks=attacks, threat=threat))
    (row,) = found.comparisons
    assert found.verdict == "supported"
    assert (row.p_value, row.lower.interval) == (None, None)
    assert row.lower.value is not None
    assert row.higher.value is not None
    assert row.lower.value < 0.5 * row.higher.value
    assert (
        guard.claim(
            evaluated(data, [line | {"lower": higher, "higher": lower}], attacks=attacks, threat=threat)
        ).verdict
        == "contradicted"
    )


def test_jumps_of_a_defended_model_are_seen_behind_its_stages(data: tuple[Tensor, Tensor]) -> None:
    """A stage that sets everything to one value lets nothing through."""

    class Flat(guard.Defense):
        name = "flat"

        def preprocess(self, images: Tensor, rng: guard.Rng) -> Tensor:
            return images * 0 + 0.5

    with torch.no_grad():
        labels = Two()(torch.full((1, 1, 8, 8), 0.5)).argmax(1).expand(70)
    keys = {"defenses": ["none", Flat()], "attacks": ["noise"], "threat": {"norm": "linf", "epsilon": 0.05}}
    line = {"figure": "jump", "layer": "first", "lower": {"defense": "flat"}, "higher": {"defense": "none"}}
    (row,) = guard.claim(evaluated((data[0], labels), [line], **keys)).comparisons
    assert row.lower.value == 0
    assert jumps(Two(), data[0], data[0])["first"].max() == 0
