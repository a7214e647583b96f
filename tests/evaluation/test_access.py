"""Victims that are no modules, and where victims, sources and defenses may come from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Attack, Defense, Goal, InputError, Report, Rng, ThreatModel, Victim

LINF = ThreatModel(norm="linf", epsilon=0.02)


class Labels(Attack):
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


class Blur(Defense):
    """Halves the contrast."""

    name = "blur"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return (images + 0.5) / 2


def evaluate(model: Any, data: Any, **settings: Any) -> Report:
    return guard.evaluate(model, data, **({"attacks": ["fgsm"], "threat": LINF} | settings))


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


def test_a_live_source_of_transfer(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    threat = guard.ThreatModel(norm="linf", epsilon=0.02)
    torch.manual_seed(3)
    others = [nn.Sequential(nn.Flatten(), nn.Linear(16, 2)) for _ in range(2)]
    knowledge = [{"transfer": other} for other in others]
    cells = guard.evaluate(linear, (images, labels), attacks=["pgd"], threat=threat, knowledge=knowledge).cells
    assert [cell.source for cell in cells] == ["Sequential", "Sequential#2"]
    assert cells[0].robust_accuracy != cells[1].robust_accuracy


def test_a_users_function_is_known_by_its_file(
    tmp_path: Path, linear: nn.Module, images: Tensor, labels: Tensor, registry: Any
) -> None:
    (tmp_path / "mine.py").write_text("def purify(images):\n    return images\n")
    report = evaluate(linear, (images, labels), defenses=[f"{tmp_path}/mine.py:purify"])
    assert report.plugins["defense purify"] == f"'purify' ({tmp_path}/mine.py)"
    assert set(report.plugins) == {"dataset tensors", "model Linear", "attack fgsm", "defense purify"}


def test_a_data_set_that_misstates_its_images(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    from guard.live import LiveData
    from guard.source import Data

    class Wrong(LiveData):
        @property
        def image_shape(self) -> tuple[int, int, int]:
            return (3, 4, 4)

    with pytest.raises(InputError, match=r"have shape \(3, 4, 4\), and loads images of \(1, 4, 4\)"):
        evaluate(linear, Wrong.of(Data.of(images, labels), None, 2))


def test_oblivious_alone_where_there_is_nothing_to_ignore(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError, match="nothing is added after training that an oblivious attacker could ignore"):
        evaluate(linear, (images, labels), knowledge="oblivious")
