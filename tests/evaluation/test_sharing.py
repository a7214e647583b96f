"""What a run shares between cells, keeps, and asks the model for."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Attack, Defense, Goal, Report, Rng, ThreatModel, Victim
from guard.evaluation import run as running

LINF = ThreatModel(norm="linf", epsilon=0.02)
CALLS: list[tuple[int, ...]] = []


class Recorded(Attack):
    """One step; notes what it is asked for."""

    name = "recorded"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        CALLS.append(tuple(rng.index.tolist()))
        gradient, _, _ = victim.gradient(images, goal)
        return threat.project(images + threat.steepest_ascent(gradient, threat.epsilon, images), images)


class Blur(Defense):
    """Halves the contrast."""

    name = "blur"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return (images + 0.5) / 2


class Tilt(Blur):
    """Another one."""

    name = "tilt"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images**1.1


class Jitter(Defense):
    """Random brightness."""

    name = "jitter"
    randomized = True
    size: float = 0.05

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images + self.size * rng.normal(()).view(-1, 1, 1, 1).to(images)


class Turns(Blur):
    """Negatives."""

    name = "turns"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return 1 - images


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    CALLS.clear()
    return guard.evaluate(model, data, **({"attacks": [Recorded()], "threat": LINF} | settings))


def unkeyable(net: nn.Module) -> nn.Module:
    net.stream = (number for number in range(3))  # type: ignore[assignment]
    return net


def _other() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(16, 2)


def _live(net: nn.Module) -> Any:
    from guard.live import LiveModel

    return LiveModel.of(guard.model(net), "other")


@pytest.mark.parametrize("keyable", [True, False])
def test_oblivious_images_are_crafted_once(keyable: bool, linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    net = linear if keyable else unkeyable(linear)
    report = evaluate(
        net, (images, labels), defenses=[Blur(), Tilt()], knowledge=["adaptive", "oblivious"], batch_size=256
    )
    assert report.run["computed_shards"] == (12 if keyable else 16)
    assert report.run["cached_shards"] == 0, "nothing was kept before this run"
    whole = [call for call in CALLS if len(call) == 256]
    assert len(whole) == 1 + 2, "the oblivious points of two defenses are the same; each is smoothed for itself"
    assert len(CALLS) == 2 * (2 + 2 + 1)  # shards x (adaptive of each, both ways, and oblivious of both)
    for blur in (0, 2):
        adaptive, oblivious = report.cells[blur : blur + 2]
        assert adaptive.candidates[1].robust_accuracy == oblivious.robust_accuracy


def test_what_is_shared_depends_on_all_that_decides_it(
    linear: nn.Module, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every cell of a large plan has the figures that it has alone, with keys and without."""
    data = (images[:40], labels[:40])
    lists: dict[str, list[Any]] = {
        "threat": [LINF, ThreatModel(norm="linf", epsilon=0.05)],
        "defenses": ["none", Tilt(), Jitter(), Jitter(size=0.2)],
        "knowledge": ["adaptive", "oblivious", {"transfer": _live(nn.Sequential(nn.Flatten(), _other()))}],
        "attacks": [{"name": "pgd", "steps": 2}, Recorded()],
        "goal": ["untargeted", {"targets": 1}],
        "seed": [0, 1],
    }

    def few(plan: dict[str, Any], net: nn.Module) -> Report:
        return evaluate(net, data, **plan, eot=2, scoring_draws=5)

    def figures(report: Report) -> list[dict[str, Any]]:
        return [cell.model_dump(exclude={"key", "seconds", "label", "defense", "candidates"}) for cell in report.cells]

    plans = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    applicable = [not (plan["defenses"] == "none" and plan["knowledge"] == "oblivious") for plan in plans]
    alone = []
    for number in (place for place in range(0, len(plans), 7) if applicable[place]):
        monkeypatch.setenv("GUARD_CACHE", str(tmp_path / str(number)))
        alone += [(number, *figures(few({name: [item] for name, item in plans[number].items()}, linear)))]
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "all"))
    keyed = figures(few(lists, linear))
    bare = figures(few(lists, unkeyable(linear)))
    assert len(keyed) == 192
    for number, figure in alone:
        assert keyed[number] == figure
        assert bare[number] == figure


@pytest.mark.parametrize(
    ("defenses", "settings"),
    [
        ([Blur(), Turns()], {"goal": {"targets": "least-likely"}, "knowledge": "oblivious"}),  # of each victim's own
        ([Jitter(), Jitter(size=2)], {}),  # two stacks on one network, where nothing is dropped
    ],
    ids=["least-likely", "stages"],
)
def test_what_no_two_victims_share(defenses: list[Defense], settings: dict[str, Any], images: Tensor) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)  # so that a negative's least likely class is another
        data = images[:8], net(images[:8]).argmax(1)
    both = evaluate(unkeyable(net), data, defenses=defenses, **settings)
    alone = [evaluate(net, data, defenses=[defense], **settings) for defense in defenses]
    made = [picture.adversarial for report in (both, *alone) for picture in report.pictures.values()]
    assert len(made) == 4
    assert (made[0] == made[2]).all()
    assert (made[1] == made[3]).all()
    assert (made[0] != made[1]).any()


def test_rows_that_the_model_sees(linear: Any, images: Tensor, labels: Tensor) -> None:
    """16 images asked about four times to see whether the answers agree, a few probes, the clean images, the attack,
    the score; rounded to 8 bits only where the data is."""

    class Counting(nn.Module):
        rows = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.rows += len(x)
            return linear(x)

    counts = []
    for data in (images, (images * 255).round() / 255):
        Counting.rows = 0
        evaluate(Counting(), (data[:100], labels[:100]))
        counts.append(Counting.rows)
    assert counts == [64 + 1 + 2 + 1 + 100 + 90 + 100, 64 + 1 + 2 + 1 + 100 + 90 + 200]


def test_where_nothing_is_right_nothing_is_attacked(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        wrong = 1 - linear(images).argmax(1)
    (cell,) = evaluate(linear, (images, wrong)).cells
    assert (cell.status, cell.robust_accuracy, cell.forwards_per_image) == ("SUSPECT", 0, 0)
    assert (cell.attack_success_rate, cell.attack_success_denominator) == (None, 0)
    assert cell.robust_accuracy_interval is not None
    assert cell.robust_accuracy_interval[0] == 0
    assert CALLS == []


def test_only_pictures_stay_in_memory(
    linear: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    table = running.Table.of

    def look(config: Any, data: Any, planned: Any, ledger: Any) -> Any:
        seen.append([len(shard["adversarial"]) for shards in ledger.outcomes.values() for shard in shards])
        return table(config, data, planned, ledger)

    monkeypatch.setattr(running.Table, "of", look)
    report = evaluate(linear, (images, labels))
    evaluate(linear, (images, labels), keep_images=True, out=tmp_path / "kept")
    evaluate(linear, (images, labels))
    assert seen == [[8, 0], [256, 44], [8, 0]]
    (pictures,) = report.pictures.values()
    assert pictures.adversarial.shape == (8, 1, 4, 4)
    assert np.abs(pictures.adversarial - pictures.clean).max() == pytest.approx(0.02, rel=1e-5)


def test_training_mode_decides_nothing(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    evaluate(linear.train(), (images, labels))
    assert evaluate(linear.eval(), (images, labels)).run["computed_shards"] == 0


def test_kept_images_are_in_the_result(linear: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    report = evaluate(linear, (images, labels), keep_images=True, out=tmp_path)
    (kept,) = report.adversarial.values()
    with np.load(tmp_path / "images" / "recorded.npz") as file:
        assert np.array_equal(kept, file["adversarial"])
    assert "adversarial" not in json.loads(report.to_json())
    assert np.abs(kept - images.numpy()).max() == pytest.approx(0.02, rel=1e-5)
    assert evaluate(linear, (images, labels)).adversarial == {}
