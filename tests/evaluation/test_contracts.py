"""Victims that fail, victims that are no modules, networks without a hash, and what a run shares and keeps."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Attack, Defense, Goal, InputError, Report, Rng, ThreatModel, Victim
from guard.evaluation import run as running
from guard.progress import Progress

LINF = ThreatModel(norm="linf", epsilon=0.02)
CALLS: list[tuple[int, ...]] = []


class Recorded(Attack):
    """One step; notes what it is asked for."""

    name = "recorded"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        CALLS.append(tuple(rng.index.tolist()))
        gradient, _, _ = victim.gradient(images, goal)
        return threat.project(images + threat.steepest_ascent(gradient, threat.epsilon, images), images)


class Labels(Recorded):
    """Asks for labels and moves to the brighter side."""

    name = "labels"
    access = "labels"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        brighter = threat.project(images + threat.epsilon, images)
        wrong = victim.labels(brighter) != goal.labels
        return torch.where(wrong.view(-1, 1, 1, 1), brighter, images)


class Logits(Labels):
    """The same through logits."""

    name = "logits"
    access = "logits"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        brighter = threat.project(images + threat.epsilon, images)
        return torch.where(goal.reached(victim.logits(brighter)).view(-1, 1, 1, 1), brighter, images)


class LateCrash(Recorded):
    """Crashes at image 100."""

    name = "late-crash"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        if (rng.index == 101).any():
            raise RuntimeError("late")
        return images


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


class Nan(Blur):
    """Loses the images."""

    name = "nan"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images * float("nan")


class Crashes(Blur):
    """Raises."""

    name = "crashes"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        raise ValueError("no blur")


class Jitter(Defense):
    """Random brightness."""

    name = "jitter"
    randomized = True
    size: float = 0.05

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images + self.size * rng.normal(()).view(-1, 1, 1, 1).to(images)


class Brighten(Attack):
    """Asks nothing."""

    name = "brighten"
    access = "transfer"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        return threat.project(images + threat.epsilon, images)


class Noisy(Blur):
    """Draws from torch's own generator, which it should not."""

    name = "noisy"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images + 0.05 * torch.randn(images.shape)


class Meter(Progress):
    """Adds up."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, what: str, total: int) -> None:
        self.total = total

    def advance(self, units: int, what: str = "") -> None:
        assert units >= 0
        self.done += units


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    CALLS.clear()
    return guard.evaluate(model, data, **({"attacks": [Recorded()], "threat": LINF} | settings))


def unkeyable(net: nn.Module) -> nn.Module:
    net.stream = (number for number in range(3))  # type: ignore[assignment]
    return net


@pytest.mark.parametrize("defense", [Nan(), Crashes()])
def test_a_defended_network_that_fails_is_invalid_and_the_others_go_on(
    defense: Defense, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    meter = Meter()
    report = evaluate(
        linear,
        (images, labels),
        defenses=["none", defense, Blur()],
        knowledge=["adaptive", "oblivious"],
        progress=meter,
    )
    found = {(cell.defense, cell.knowledge): cell.status for cell in report.cells}
    assert found == {
        ("none", "adaptive"): "VALID",
        ("none", "oblivious"): "NOT_APPLICABLE",
        (defense.name, "adaptive"): "INVALID",
        (defense.name, "oblivious"): "INVALID",
        ("blur", "adaptive"): "VALID",
        ("blur", "oblivious"): "VALID",
    }
    reasons = {cell.reason for cell in report.cells if cell.status == "INVALID"}
    if defense.name == "nan":
        assert reasons == {"the model returns NaN or infinity for 256 of 256 clean images"}
    else:
        (reason,) = reasons
        assert reason.startswith("defense 'crashes' raised ValueError: no blur (test_contracts.py:")
    worst = {(row.defense, row.knowledge): row.status for row in report.worst_case}
    assert worst[defense.name, "adaptive"] == "INCOMPLETE"
    assert worst["blur", "adaptive"] == "VALID"
    assert meter.done == meter.total > 0


@pytest.mark.parametrize("batch_size", [64, 256])
def test_progress_ends_at_its_total(batch_size: int, linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    for _ in range(2):  # computed, then from the store
        meter = Meter()
        evaluate(
            linear,
            (images, labels),
            attacks=[LateCrash(), Recorded(), "noise"],
            defenses=["none", Blur()],
            knowledge=["adaptive", "oblivious"],
            batch_size=batch_size,
            progress=meter,
        )
        assert meter.total == 300 * (3 + 3 * 2 + 3)
        assert meter.done == meter.total


@pytest.mark.parametrize("keyable", [True, False])
def test_oblivious_images_are_crafted_once(keyable: bool, linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    net = linear if keyable else unkeyable(linear)
    report = evaluate(
        net, (images, labels), defenses=[Blur(), Tilt()], knowledge=["adaptive", "oblivious"], batch_size=256
    )
    assert report.run["cached_shards"] == (4 if keyable else 0)
    whole = [call for call in CALLS if len(call) == 256]
    assert len(whole) == 1, "the oblivious points of two defenses are the same"
    assert len(CALLS) == 2 * (2 + 1)  # shards x (adaptive of each, oblivious of both)
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

    def figures(report: Report) -> list[dict[str, Any]]:
        return [cell.model_dump(exclude={"key", "seconds", "label", "defense", "candidates"}) for cell in report.cells]

    plans = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    applicable = [not (plan["defenses"] == "none" and plan["knowledge"] == "oblivious") for plan in plans]
    alone = []
    for number in (place for place in range(0, len(plans), 7) if applicable[place]):
        monkeypatch.setenv("GUARD_CACHE", str(tmp_path / str(number)))
        alone += [(number, *figures(evaluate(linear, data, **{name: [item] for name, item in plans[number].items()})))]
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "all"))
    keyed = figures(evaluate(linear, data, **lists))
    bare = figures(evaluate(unkeyable(linear), data, **lists))
    assert len(keyed) == 192
    for number, figure in alone:
        assert keyed[number] == figure
        assert bare[number] == figure


class Turns(Blur):
    """Negatives."""

    name = "turns"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return 1 - images


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


def test_nothing_is_dropped_where_the_victim_draws(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = {"name": "pgd", "steps": 3}
    still, draws = evaluate(linear, (images, labels), attacks=[attack], defenses=["none", Jitter()]).cells
    assert still.forwards_per_image is not None
    assert still.forwards_per_image < 3
    assert draws.forwards_per_image == 6  # through the defense, and without it
    assert draws.status == "SUSPECT"
    assert draws.reason == "the defense is randomized, and each image was scored on one draw only"


def test_nan_on_adversarial_images_is_invalid(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where((x > 0.7).flatten(1).any(1)[:, None], float("nan"), 1.0) * linear(x)

    report = evaluate(Fragile(), (images, labels), attacks=[Brighten()])
    assert report.cells[0].status == "INVALID"
    text = "the victim of attack 'brighten' from 'not registered' returns NaN or infinity on adversarial images"
    assert report.cells[0].reason == text


def test_rows_that_the_model_sees(linear: Any, images: Tensor, labels: Tensor) -> None:
    """A probe or two, 16 images asked about twice to see whether the answers agree, the clean images, the attack, the
    score; rounded to 8 bits only where the data is."""

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
    assert counts == [1 + 2 + 32 + 100 + 90 + 100, 1 + 2 + 32 + 100 + 90 + 200]


def _other() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(16, 2)


def _live(net: nn.Module) -> Any:
    from guard.live import LiveModel

    return LiveModel.of(guard.model(net), "other")


@pytest.mark.parametrize("access", ["labels", "logits"])
def test_a_predictor_of_arrays(access: str, linear: Any, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    saved = tmp_path / "saved.npz"
    np.savez(saved, adversarial=images.numpy(), indices=np.arange(300))
    weight, bias = linear.weight.detach().numpy(), linear.bias

    def predict(arrays: np.ndarray) -> np.ndarray:
        assert isinstance(arrays, np.ndarray)
        score = (arrays * weight).reshape(len(arrays), -1).sum(1) + bias
        return (score > 0).astype(int) if access == "labels" else np.stack([0 * score, score], 1)

    model = guard.model(predict, access=access, num_classes=2)  # type: ignore[arg-type]
    attacks = ["pgd", Labels(), Logits(), {"name": "saved", "path": str(saved)}]
    report = evaluate(model, (images, labels), attacks=attacks, defenses=["none", Blur()])
    pgd, by_labels, by_logits, stored = report.cells[:4]
    assert pgd.status == "NOT_APPLICABLE"
    assert pgd.reason == (
        f"attack 'pgd' needs gradients, and the model gives {access} only. Use an attack that asks for less"
    )
    assert by_logits.status == ("VALID" if access == "logits" else "NOT_APPLICABLE")
    assert (by_labels.status, stored.status) == ("VALID", "VALID")
    white = evaluate(linear, (images, labels), attacks=[Labels()]).cells[0]
    assert by_labels.robust_accuracy == white.robust_accuracy != by_labels.clean_accuracy == 0.9
    assert report.worst_case[0].status == "VALID"
    with pytest.raises(InputError, match="attack 'fgsm' needs gradients"):
        evaluate(model, (images, labels), attacks=["fgsm"])


def test_where_nothing_is_right_nothing_is_attacked(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        wrong = 1 - linear(images).argmax(1)
    (cell,) = evaluate(linear, (images, wrong)).cells
    assert (cell.status, cell.robust_accuracy, cell.forwards_per_image) == ("SUSPECT", 0, 0)
    assert (cell.attack_success_rate, cell.attack_success_denominator) == (None, 0)
    assert cell.robust_accuracy_interval is not None
    assert cell.robust_accuracy_interval[0] == 0
    assert CALLS == []


def test_oblivious_alone_where_there_is_nothing_to_ignore(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError, match="nothing is added after training that an oblivious attacker could ignore"):
        evaluate(linear, (images, labels), knowledge="oblivious")


def test_8bit_figures_are_those_of_the_data_at_hand(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    grid = (images * 255).round() / 255
    grid[280] += 0.4 / 255  # in the second shard
    mixed = evaluate(linear, (grid, labels)).cells[0]
    assert mixed.robust_accuracy_8bit is None
    alone = evaluate(linear, (grid, labels), limit=256)
    assert alone.run["computed_shards"] == 0
    cell = alone.cells[0]
    assert cell.robust_accuracy_8bit is not None
    # 0.02 is 5.1 / 255: on the grid the attacker has 5 / 255 only
    smaller = evaluate(linear, (grid, labels), limit=256, threat=ThreatModel(norm="linf", epsilon=5 / 255)).cells[0]
    assert cell.robust_accuracy_8bit == smaller.robust_accuracy
    assert cell.robust_accuracy is not None
    assert cell.robust_accuracy < cell.robust_accuracy_8bit


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


def test_kept_images_need_a_folder(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError, match=r"keep_images has no folder to keep them in\. Give out="):
        evaluate(linear, (images, labels), keep_images=True)


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


def test_training_mode_decides_nothing(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    evaluate(linear.train(), (images, labels))
    assert evaluate(linear.eval(), (images, labels)).run["computed_shards"] == 0


def test_a_users_function_is_known_by_its_file(
    tmp_path: Path, linear: nn.Module, images: Tensor, labels: Tensor, registry: Any
) -> None:
    (tmp_path / "mine.py").write_text("def purify(images):\n    return images\n")
    report = evaluate(linear, (images, labels), defenses=[f"{tmp_path}/mine.py:purify"])
    assert report.plugins["defense purify"] == f"'purify' ({tmp_path}/mine.py)"
    assert set(report.plugins) == {"dataset tensors", "model Linear", "attack recorded", "defense purify"}


def test_a_data_set_that_misstates_its_images(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    from guard.live import LiveData
    from guard.source import Data

    class Wrong(LiveData):
        @property
        def image_shape(self) -> tuple[int, int, int]:
            return (3, 4, 4)

    with pytest.raises(InputError, match=r"have shape \(3, 4, 4\), and loads images of \(1, 4, 4\)"):
        evaluate(linear, Wrong.of(Data.of(images, labels), None, 2))


def test_a_perfect_score_on_three_images_is_no_proof(
    linear: nn.Module, images: Tensor, labels: Tensor, robust: Callable[[ThreatModel], float]
) -> None:
    (cell,) = evaluate(linear, (images[1:4], labels[1:4])).cells
    assert cell.reason.startswith("clean accuracy 100.0% on 3 images is not clearly above chance (50.0%)")


class Lossy(Defense):
    """Keeps one image of a batch, or returns what is no image, or crashes, or draws from torch's own generator."""

    name = "lossy"
    how: str = "one"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        if self.how == "crash":
            raise ValueError("boom")
        if self.how == "none":
            return None  # type: ignore[return-value]
        return images[:1] if self.how == "one" else (images + 0.3 * torch.randn_like(images)).clamp(0, 1)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("one", r"defense 'lossy' returns shape \(1, .*\) for images of \(\d+, .*\)\. Return as many images"),
        ("none", r"defense 'lossy' returns a NoneType for images of \(\d+, .*\)\. Return as many images"),
        ("crash", r"defense 'lossy' raised ValueError: boom \(test_contracts\.py:\d+\)"),
    ],
)
def test_a_stage_that_fails_is_named_and_the_others_go_on(
    how: str, text: str, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    report = guard.evaluate(
        linear,
        (images, labels),
        attacks=["fgsm"],
        defenses=["none", Lossy(how=how)],
        threat=guard.ThreatModel(norm="linf", epsilon=0.02),
    )
    fine, broken = report.cells
    assert (fine.status, broken.status) == ("VALID", "INVALID")
    assert re.search(text, broken.reason)


def test_undeclared_randomness_is_suspect(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    threat = guard.ThreatModel(norm="linf", epsilon=0.02)
    (cell,) = guard.evaluate(
        linear, (images, labels), attacks="fgsm", defenses=[Lossy(how="draws")], threat=threat
    ).cells
    assert cell.status == "SUSPECT"
    assert cell.reason == "the defense is randomized, and each image was scored on one draw only"


def test_a_live_source_of_transfer(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    threat = guard.ThreatModel(norm="linf", epsilon=0.02)
    torch.manual_seed(3)
    others = [nn.Sequential(nn.Flatten(), nn.Linear(16, 2)) for _ in range(2)]
    knowledge = [{"transfer": other} for other in others]
    cells = guard.evaluate(linear, (images, labels), attacks=["pgd"], threat=threat, knowledge=knowledge).cells
    assert [cell.source for cell in cells] == ["Sequential", "Sequential#2"]
    assert cells[0].robust_accuracy != cells[1].robust_accuracy


def test_precision_is_full_and_put_back(images: Tensor) -> None:
    from guard.evaluation.network import full_precision

    with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
        assert (images[0, 0] @ images[1, 0]).dtype == torch.float32
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision(torch.device("cpu")):
            pass
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
