"""A claim from its config to its verdict, on networks that are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import guard
from guard import InputError
from guard.explaining.shuffles import agreement


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))


class Bright(nn.Module):
    """Says 1 where an image is brighter than a half on the mean."""

    def __init__(self, figure: str = "mean") -> None:
        super().__init__()
        self.figure = figure

    def forward(self, images: Tensor) -> Tensor:
        score = images.mean((1, 2, 3)) - 0.5
        if self.figure == "top":
            score = (images[:, :, :4] - images[:, :, 4:]).mean((1, 2, 3))
        return torch.stack([-score, score], 1)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Levels from 0.4 to 0.6, flat, and what `Bright` says of them."""
    images = torch.linspace(0.4, 0.6, 100)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    return images, (images.mean((1, 2, 3)) > 0.5).long()


def claim(data: Any, lines: list[dict[str, Any]], model: nn.Module, **keys: Any) -> dict[str, Any]:
    evaluate = {
        "dataset": data,
        "model": model,
        "threat": [{"norm": "linf", "epsilon": 0.01}, {"norm": "linf", "epsilon": 0.05}],
        "attacks": ["fgsm", "noise"],
    }
    return {"claim": "X.", "evaluate": evaluate | keys, "expect": lines}


WIDE = {"attack": "fgsm", "epsilon": 0.05}
NEAR = {"attack": "fgsm", "epsilon": 0.01}


def test_an_evaluation_supports_and_contradicts(data: tuple[Tensor, Tensor]) -> None:
    found = guard.claim(claim(data, [{"lower": WIDE, "higher": NEAR, "by": 0.3}], Bright()))
    assert str(found) == "supported: X."
    (row,) = found.comparisons
    # an image stands where it is further from 0.5 than epsilon: 50 of 100 of them, and 90
    assert (row.lower.value, row.higher.value, row.difference) == (0.5, 0.9, pytest.approx(0.4))
    assert row.p_value == pytest.approx(2 * 0.5**40)
    assert "fgsm on none, adaptive, epsilon 0.05" in row.lower.name
    assert guard.claim(claim(data, [{"lower": NEAR, "higher": WIDE}], Bright())).verdict == "contradicted"


def test_standing_is_that_of_each_image_and_stays_out_of_the_json(data: tuple[Tensor, Tensor]) -> None:
    threat = {"norm": "linf", "epsilon": 0.05}
    report = guard.evaluate(Bright(), data, attacks=["fgsm"], threat=threat)
    (cell,) = report.cells
    stands = report.standing[cell.key]
    level = data[0][:, 0, 0, 0].numpy()
    assert np.array_equal(stands, np.abs(level - 0.5) > 0.05)
    assert stands.mean() == cell.robust_accuracy
    assert "standing" not in report.to_json()


def test_a_cell_that_is_no_figure_leaves_it_undecided(data: tuple[Tensor, Tensor]) -> None:
    lines = [{"lower": {**WIDE, "knowledge": "oblivious"}, "higher": {**NEAR, "knowledge": "adaptive"}}]
    found = guard.claim(claim(data, lines, Bright(), knowledge=["oblivious", "adaptive"]))
    assert found.verdict == "undecided"
    assert found.why.startswith("fgsm on none, oblivious, epsilon 0.05 is NOT_APPLICABLE: nothing is added")
    assert found.comparisons[0].p_corrected is None


def test_lines_are_checked_before_anything_is_computed(
    data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.api.run", lambda *_, **__: pytest.fail("it was evaluated"))
    with pytest.raises(InputError, match="selects no cell"):
        guard.claim(claim(data, [{"lower": {"attack": "pgd"}, "higher": NEAR}], Bright()))


def test_seeds_are_evaluated_apart_and_go_on_from_the_store(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    settings = claim(data, [{"lower": WIDE, "higher": {"attack": "noise", "epsilon": 0.05}}], Bright())
    found = guard.claim(settings | {"seeds": [4, 2]}, out=tmp_path / "out")
    assert [row.seed for row in found.comparisons] == [4, 2]
    assert found.folders == {4: "seed-4", 2: "seed-2"}
    reports = [guard.load_run(tmp_path / "out" / name) for name in ("seed-4", "seed-2")]
    assert [report.cells[0].seed for report in reports] == [4, 2]
    again = guard.claim(settings | {"seeds": [4, 2]}, out=tmp_path / "out")
    assert again == found
    after = [guard.load_run(tmp_path / "out" / name) for name in ("seed-4", "seed-2")]
    assert [report.run["computed_shards"] for report in after] == [0, 0]


def test_a_refused_claim_does_not_keep_its_folder(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        guard.claim(claim(data, [{"lower": {"attack": "pgd"}, "higher": NEAR}], Bright()), out=tmp_path / "out")
    assert guard.claim(claim(data, [{"lower": WIDE, "higher": NEAR}], Bright()), out=tmp_path / "out")
    with pytest.raises(InputError, match=r"belongs to another config: its config\.json differs in expect"):
        guard.claim(claim(data, [{"lower": NEAR, "higher": WIDE}], Bright()), out=tmp_path / "out")


def test_the_shuffle_experiment() -> None:
    images = torch.randint(256, (200, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 256
    model = Bright("top")  # whose halves no shuffle inside a block of 4 mixes
    shuffle = {"dataset": (images, torch.zeros(200).long()), "model": model, "sides": [2, 4], "limit": 150}
    line = {"side": 4, "lower": "blocks", "higher": "pixels", "by": 0.1}
    found = guard.claim({"claim": "X.", "shuffle": shuffle, "expect": [line]})
    (row,) = found.comparisons
    (expected,) = agreement(model, images[:150], [4], 0)
    assert (row.lower.value, row.higher.value, row.p_value) == (expected.blocks, 1.0, expected.p_value)
    assert row.lower.interval == expected.blocks_interval
    assert (found.images, found.verdict, found.folders) == (150, "supported", {})
    other = guard.claim({"claim": "X.", "shuffle": shuffle, "expect": [line | {"lower": "pixels", "higher": "blocks"}]})
    assert (other.verdict, other.comparisons[0].difference) == ("contradicted", pytest.approx(expected.blocks - 1))
