"""A cascade takes over from another attack: nothing is done twice, and what comes out is what both would find."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard import Attack, Cascade, Goal, Rng, ThreatModel, Victim, craft, evaluate

THREAT = {"norm": "linf", "epsilon": 0.05}


class Push(Attack):
    """One step against the weight of the first or of all pixels, as far as `reach` allows."""

    name = "push"
    reach: float = 1.0
    calls: ClassVar[list[tuple[float, int]]] = []

    def perturb(self, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        self.calls.append((self.reach, len(images)))
        gradient, _, _ = victim.gradient(images, goal)
        return threat.project(images + self.reach * threat.epsilon * gradient.sign(), images)


class Harder(Cascade):
    """All the way."""

    name = "harder"

    def members(self, threat: ThreatModel) -> Sequence[tuple[str, Attack]]:
        return [("all", Push(reach=1.0))]


def test_what_an_attack_broke_is_taken_from_it_and_the_rest_attacked(
    linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    data = (images, labels)
    Push.calls.clear()
    first = evaluate(linear, data, attacks=[Push(reach=0.3)], threat=THREAT).cells[0]
    whole = evaluate(linear, data, attacks=[Harder()], threat=THREAT).cells[0]
    Push.calls.clear()
    attacks = [Push(reach=0.3), Harder(after=Push(reach=0.3))]
    once, both = evaluate(linear, data, attacks=attacks, threat=THREAT).cells
    assert first.robust_accuracy == once.robust_accuracy
    assert both.robust_accuracy == whole.robust_accuracy
    assert whole.robust_accuracy < first.robust_accuracy < first.clean_accuracy  # type: ignore[operator]
    left = round(first.robust_accuracy * 300)  # type: ignore[operator]
    assert [reach for reach, _ in Push.calls] == [1.0] * len(Push.calls)  # the first was not run again
    assert sum(count for _, count in Push.calls) == left
    assert [part.name for part in both.parts] == ["push", "all"]
    right = round(first.clean_accuracy * 300)  # type: ignore[operator]
    assert [part.images for part in both.parts] == [right, left]
    assert [part.broke for part in both.parts] == [right - left, left - round(whole.robust_accuracy * 300)]  # type: ignore[operator]


def test_kept_images_are_of_whichever_broke_them(
    linear: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    import numpy as np

    data, attacks = (images, labels), [Push(reach=0.3), Harder(after=Push(reach=0.3))]
    evaluate(linear, data, attacks=attacks[:1], threat=THREAT)  # kept without its images
    evaluate(linear, data, attacks=attacks, threat=THREAT, out=tmp_path, keep_images=True)
    kept = {label: np.load(tmp_path / "images" / f"{label}.npz")["adversarial"] for label in ("push", "harder")}
    assert len(kept["harder"]) == 300
    with torch.no_grad():
        fell = (linear(torch.from_numpy(kept["push"])).argmax(1) != labels).numpy()
    assert (kept["harder"][fell] == kept["push"][fell]).all()
    assert (kept["harder"][~fell] != kept["push"][~fell]).any()


def test_outside_an_evaluation_it_goes_first_itself(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    Push.calls.clear()
    threat = ThreatModel(norm="linf", epsilon=0.05)
    alone = craft(Harder(), linear, images, labels, threat)
    Push.calls.clear()
    both = craft(Harder(after=Push(reach=0.3)), linear, images, labels, threat)
    assert {reach for reach, _ in Push.calls} == {0.3, 1.0}
    with torch.no_grad():
        assert torch.equal(linear(both).argmax(1), linear(alone).argmax(1))


def test_under_a_budget_both_attacks_share_it(
    linear: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    attacks = [{"name": "autoattack", "after": {"name": "square", "queries": 20}}]
    threat = THREAT | {"epsilon": 1e-4}
    data, out = (images[:40], labels[:40]), tmp_path / "run"
    cell = evaluate(linear, data, attacks=attacks, threat=threat, max_queries=30, out=out).cells[0]
    text = "No attack could ask about an image more than 30 times (max_queries)."
    assert text in (out / "report.md").read_text()
    assert cell.status == "VALID", cell.reason
    assert cell.clean_accuracy is not None
    assert cell.forwards_per_image == 30 * cell.clean_accuracy


def test_a_member_that_cannot_attack_in_the_norm_makes_the_cascade_not_applicable(
    linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    attacks = ["pgd", {"name": "autoattack", "after": "square"}]
    cells = evaluate(linear, (images[:20], labels[:20]), attacks=attacks, threat={"norm": "l1", "epsilon": 0.5}).cells
    assert cells[1].status == "NOT_APPLICABLE"
    assert cells[1].reason == "attack 'autoattack: square' works in l2, linf, not in l1. Use one of its norms"
