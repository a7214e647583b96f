"""The evaluator: its figures against closed forms, its statuses, and what it leaves as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Attack, Defense, Goal, InputError, Report, Rng, ThreatModel, Victim
from guard.evaluation.result import Cell

LINF = ThreatModel(norm="linf", epsilon=0.02)
NONE = [guard.Stack()]


class Crash(Attack):
    """Raises."""

    name = "crash"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        raise RuntimeError("no luck")


class Overshoot(Attack):
    """Leaves the ball."""

    name = "overshoot"

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        return (images + 2 * threat.epsilon).clamp(0, 1)


class OnlyL2(Attack):
    """Works in l2."""

    name = "only-l2"
    norms = frozenset({"l2"})

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        return images


class Coarse(Defense):
    """Two levels: the gradient of a round is zero, so what is differentiable only in name looks robust."""

    name = "coarse"
    differentiable = False

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images.round()


def only(report: Report) -> Cell:
    assert len(report.cells) == 1
    return report.cells[0]


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    keys = {"attacks": [{"name": "pgd", "steps": 20}], "threat": LINF, "defenses": NONE} | settings
    return guard.evaluate(model, data, **keys)


@pytest.mark.parametrize(
    "threat", [LINF, ThreatModel(norm="l2", epsilon=0.1), ThreatModel(norm="l1", epsilon=0.1)], ids=str
)
def test_robust_accuracy_equals_the_closed_form(
    threat: ThreatModel, linear: nn.Module, images: Tensor, labels: Tensor, robust: Callable[[ThreatModel], float]
) -> None:
    attack = {"name": "pgd", "steps": 20, "step_size": threat.epsilon}
    cell = only(evaluate(linear, (images, labels), threat=threat, attacks=[attack]))
    assert cell.status == "VALID"
    assert cell.clean_accuracy == 0.9
    assert cell.robust_accuracy == robust(threat)
    assert 0.05 < robust(threat) < 0.85
    broken = round((cell.clean_accuracy - cell.robust_accuracy) * 300)
    assert cell.attack_success_denominator == 270
    assert cell.attack_success_rate == pytest.approx(broken / 270)
    assert cell.max_distance == pytest.approx(threat.epsilon, rel=1e-5)


def test_a_clean_error_is_not_robust_and_costs_nothing(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    cell = only(evaluate(linear, (images, 1 - labels), attacks=["fgsm"], threat=ThreatModel(norm="linf", epsilon=1e-6)))
    assert cell.clean_accuracy == pytest.approx(0.1)
    assert cell.robust_accuracy == pytest.approx(0.1)
    assert cell.forwards_per_image == pytest.approx(0.1)
    assert cell.status == "SUSPECT"
    assert cell.reason == (
        "clean accuracy 10.0% on 300 images is not clearly above chance (50.0%). "
        "Check the order of the classes and the normalisation"
    )


def test_results_do_not_depend_on_the_batch_size(
    images: Tensor, labels: Tensor, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    attacks = ["noise", "fgsm", "mi-fgsm", {"name": "pgd", "restarts": 2}]
    rows = []
    for number, size in enumerate((1, 7, 64, 256)):
        monkeypatch.setenv("GUARD_CACHE", str(cache / str(number)))
        report = evaluate(net, (images[:90], labels[:90]), attacks=attacks, batch_size=size, precision="float64")
        rows.append([(cell.robust_accuracy, cell.max_distance, cell.forwards_per_image) for cell in report.cells])
    assert rows[0] == rows[1] == rows[2] == rows[3]


def test_an_attack_that_fails_is_invalid_and_never_robustness(
    linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    report = evaluate(linear, (images, labels), attacks=["fgsm", Crash(), Overshoot()])
    fine, crash, overshoot = report.cells
    assert fine.status == "VALID"
    assert crash.status == overshoot.status == "INVALID"
    assert crash.robust_accuracy is overshoot.robust_accuracy is None
    assert crash.reason.startswith("attack 'crash' from 'not registered' raised RuntimeError: no luck (test_run.py:")
    assert overshoot.reason.startswith("attack 'overshoot' from 'not registered' moved a pixel by 0.0400 (10.2/255)")
    (worst,) = report.worst_case
    assert worst.status == "INCOMPLETE"
    assert worst.reason == "without crash, overshoot: an upper bound only"
    assert worst.robust_accuracy == fine.robust_accuracy


def test_the_worst_case_is_per_image(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Half(Attack):
        """FGSM on images whose index is even, or odd."""

        name = "half"
        odd: bool = False

        def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
            gradient, _, _ = victim.gradient(images, goal)
            adversarial = threat.project(images + threat.steepest_ascent(gradient, threat.epsilon, images), images)
            return torch.where((rng.index % 2 == int(self.odd)).view(-1, 1, 1, 1), adversarial, images)

    report = evaluate(linear, (images, labels), attacks=["fgsm", Half(), Half(odd=True)])
    full = report.cells[0]
    (worst,) = report.worst_case
    assert [cell.label for cell in report.cells] == ["fgsm", "half", "half#2"]
    assert worst.robust_accuracy == full.robust_accuracy
    assert full.robust_accuracy is not None
    broken = round((0.9 - full.robust_accuracy) * 300)
    assert worst.broken_first == {"fgsm": broken, "half": 0, "half#2": 0}
    assert worst.broken_only == {"fgsm": 0, "half": 0, "half#2": 0}
    alone = evaluate(linear, (images, labels), attacks=[Half(), Half(odd=True)]).worst_case[0]
    assert alone.robust_accuracy == full.robust_accuracy
    assert sum(alone.broken_only.values()) == broken


@pytest.mark.parametrize("attack", ["fgsm", "noise"])
def test_adaptive_is_never_above_oblivious(attack: str, linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    report = evaluate(
        linear, (images, labels), attacks=[attack], defenses=["none", Coarse()], knowledge=["adaptive", "oblivious"]
    )
    plain, inapplicable, adaptive, oblivious = report.cells
    assert plain.status == "VALID"
    assert inapplicable.status == "NOT_APPLICABLE"
    assert inapplicable.reason == (
        "nothing is added after training that an oblivious attacker could ignore. Use knowledge: adaptive"
    )
    assert adaptive.robust_accuracy is not None
    assert oblivious.robust_accuracy is not None
    assert adaptive.robust_accuracy <= oblivious.robust_accuracy
    names = [candidate.name for candidate in adaptive.candidates]
    assert names == (["bpda", "smoothed", "oblivious"] if attack == "fgsm" else ["queries", "oblivious"])
    assert adaptive.candidates[-1].robust_accuracy == oblivious.robust_accuracy
    worst = {(row.defense, row.knowledge): row.robust_accuracy for row in report.worst_case}
    assert worst["coarse", "adaptive"] == adaptive.robust_accuracy


def test_probabilities_are_suspect(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    cell = only(evaluate(nn.Sequential(linear, nn.Softmax(1)), (images, labels), attacks=["fgsm"]))
    assert cell.status == "SUSPECT"
    assert cell.reason == 'the model\'s outputs look like probabilities. Give outputs="probabilities"'
    model = guard.model(nn.Sequential(linear, nn.Softmax(1)), outputs="probabilities")
    assert only(evaluate(model, (images, labels), attacks=["fgsm"])).status == "VALID"


def test_a_model_that_returns_nan_is_invalid(images: Tensor, labels: Tensor) -> None:
    class Nan(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            scores = images.flatten(1)[:, :2].clone()
            return torch.where(images.mean((1, 2, 3))[:, None] > 0.5, scores, scores * float("nan"))

    report = evaluate(Nan(), (images, labels), attacks=["fgsm", "pgd"])
    assert {cell.status for cell in report.cells} == {"INVALID"}
    assert "the model returns NaN or infinity for" in report.cells[0].reason
    assert report.worst_case[0].status == "INCOMPLETE"
    assert report.worst_case[0].robust_accuracy is None


def test_a_norm_the_attack_does_not_have(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    text = "attack 'only-l2' works in l2, not in linf. Use one of its norms"
    with pytest.raises(InputError) as caught:
        evaluate(linear, (images, labels), attacks=[OnlyL2()])
    assert str(caught.value) == text
    report = evaluate(linear, (images, labels), attacks=["fgsm", OnlyL2()])
    assert [cell.status for cell in report.cells] == ["VALID", "NOT_APPLICABLE"]
    assert report.cells[1].reason == text
    assert report.worst_case[0].status == "VALID"


def test_a_targeted_goal_counts_the_target_reached(images: Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    torch.manual_seed(0)
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(5, 16))
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
        labels = net(images).argmax(1)
    report = evaluate(net, (images, labels), goal=["untargeted", {"targets": 2}, {"targets": "least-likely"}])
    free, two, least = report.cells
    assert two.attack_success_denominator == int((labels != 2).sum())
    assert least.attack_success_denominator == 300
    assert two.attack_success_rate is not None
    assert least.attack_success_rate is not None
    assert free.robust_accuracy is not None
    assert two.robust_accuracy is not None
    assert least.attack_success_rate <= two.attack_success_rate
    assert free.robust_accuracy <= two.robust_accuracy  # aiming is harder than erring
    assert report.worst_case[0].goal == "untargeted and targeted: 2 and targeted: least-likely"
    with pytest.raises(InputError, match="target 7 is no class; the data set has classes 0 to 4"):
        evaluate(net, (images, labels), goal={"targets": 7})


def test_transfer_crafts_on_the_source(linear: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import torch\n"
        "def net():\n"
        "    torch.manual_seed(5)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))\n"
    )
    source = f"{tmp_path}/other.py:net"
    report = evaluate(linear, (images, labels), knowledge=["adaptive", {"transfer": source}])
    white, transfer = report.cells
    assert transfer.knowledge == "transfer"
    assert transfer.source is not None
    assert white.robust_accuracy is not None
    assert transfer.robust_accuracy is not None
    assert white.robust_accuracy < transfer.robust_accuracy <= 0.9
    assert transfer.forwards_per_image == 20  # nothing is dropped where the victim is another


def test_the_live_model_is_left_as_it_was(images: Tensor, labels: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.random.get_rng_state()
    for precision in ("float32", "float64"):
        evaluate(net, (images, labels), precision=precision)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
