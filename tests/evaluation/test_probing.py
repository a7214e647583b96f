"""What defenses say of themselves and is not so: draws, gradients, copies, modes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Defense, Report, Rng, ThreatModel
from guard.evaluation.probing import check_stage

LINF = ThreatModel(norm="linf", epsilon=0.05)


def evaluate(model: Any, data: Any, defense: Defense, **settings: Any) -> Report:
    return guard.evaluate(model, data, **({"attacks": ["pgd"], "threat": LINF, "defenses": [defense]} | settings))


class Jitter(Defense):
    name = "jitter"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return images + 0.1 * rng.normal().to(images)


class Declared(Jitter):
    randomized = True


class Levels(Defense):
    """Three levels; by what gradients come back is not said."""

    name = "levels"

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        return (images * 3).round() / 3


class Stamped(Defense):
    """Works on the images that it is given."""

    name = "stamped"
    differentiable = False
    copies: bool = False

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        images = images.clone() if self.copies else images
        images[:, :, 0] = 0
        return images.mul_(5).round_().div_(5)


class Normed(Defense):
    """A BatchNorm of its own, left in train mode."""

    name = "normed"

    def __init__(self, **keys: Any) -> None:
        super().__init__(**keys)
        self._norm = nn.BatchNorm2d(1, affine=False)

    def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
        result: Tensor = self._norm.to(images)(images)
        return result


def test_draws_of_a_stage_that_it_does_not_own_up_to(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    cells = [
        evaluate(linear, (images, labels), stage, eot=4, scoring_draws=30).cells[0] for stage in (Jitter(), Declared())
    ]
    assert [(cell.eot, cell.scoring_draws) for cell in cells] == [(4, 30)] * 2
    assert cells[0].robust_accuracy == pytest.approx(cells[1].robust_accuracy, abs=0.02)


def test_a_rare_draw_is_found(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    class Flaky(nn.Module):
        """Errs on a fifth of the draws of each image."""

        def forward(self, x: Tensor) -> Tensor:
            wrong = torch.rand(len(x)) < 0.2
            logits: Tensor = linear(x)
            return torch.where(wrong[:, None], -logits, logits)

    (cell,) = guard.evaluate(Flaky(), (images, labels), attacks=["noise"], threat=LINF, scoring_draws=50).cells
    assert cell.scoring_draws == 50


def test_a_stage_without_a_gradient_has_to_say_so(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    (cell,) = evaluate(linear, (images, labels), Levels()).cells
    assert cell.status == "INVALID"
    assert cell.reason == (
        "defense 'levels' lets no gradient through, and does not say so. Write differentiable = False, and a surrogate "
        "where there is one"
    )

    class Honest(Levels):
        differentiable = False

    class Constant(Defense):
        name = "constant"

        def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
            return torch.full_like(images, 0.5)

    assert evaluate(linear, (images, labels), Honest()).cells[0].status == "VALID"
    check_stage(Constant(), images[:4])  # what answers all alike has no gradient, and hides none


def test_a_stage_may_work_in_place(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    before = images.clone()
    reports = [evaluate(linear, (images, labels), Stamped(copies=copies), keep_images=True) for copies in (False, True)]
    one, other = (report.cells[0] for report in reports)
    assert one.status != "INVALID"
    assert one.robust_accuracy == other.robust_accuracy
    assert [way.robust_accuracy for way in one.candidates] == [way.robust_accuracy for way in other.candidates]
    assert torch.equal(images, before)


def test_modules_of_a_stage_are_in_eval_mode(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    stage = Normed()
    found = [evaluate(linear, (images, labels), stage, batch_size=size).cells[0].robust_accuracy for size in (4, 64)]
    assert found[0] == found[1]
    assert stage._norm.training
    assert stage._norm.num_batches_tracked == 0


def test_a_codec_sees_pixels_behind_the_smoothing(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    seen: list[Tensor] = []

    class Codec(Defense):
        name = "codec"
        differentiable = False

        def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
            seen.append(images.detach())
            return (images * 255).round().byte().to(images) / 255

    dark = images.round()  # black and white
    (cell,) = evaluate(linear, (dark, labels), Codec()).cells
    assert "smoothed" in {way.name for way in cell.candidates}
    assert min(float(part.min()) for part in seen) >= 0
    assert max(float(part.max()) for part in seen) <= 1


def test_one_image_of_a_victim_that_draws(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    stage = Declared()
    (cell,) = evaluate(linear, (images[:1], labels[:1]), stage, attacks=["noise"], scoring_draws=7).cells
    assert cell.status in ("VALID", "SUSPECT")
    assert cell.robust_accuracy_interval is not None


def test_an_early_stop_can_be_denied(linear: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    attack = {"name": "pgd", "steps": 10}
    some, all_ = (
        guard.evaluate(linear, (images, labels), attacks=[attack], threat=LINF, early_stop=stop).cells[0]
        for stop in (True, False)
    )
    assert all_.backwards_per_image == 10  # also at images that are wrong as they are
    assert (some.backwards_per_image or 0) < (all_.backwards_per_image or 0)
    assert all_.robust_accuracy == some.robust_accuracy


def test_a_gradient_that_is_partly_hidden_is_suspect(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    """All but a little of each image is rounded, which passes for a gradient."""

    class Gate(Defense):
        name = "gate"

        def preprocess(self, images: Tensor, rng: Rng) -> Tensor:
            rounded = (images * 20).round() / 20
            rounded[:, :, 0, 0] = 0.5 + 1e-3 * images[:, :, 0, 0]
            return rounded

    threat = ThreatModel(norm="linf", epsilon=0.1)
    (cell,) = evaluate(linear, (images, labels), Gate(), threat=threat).cells
    found = {way.name: way.robust_accuracy for way in cell.candidates}
    assert found["oblivious"] < min(found["gradient"], found["smoothed"]) - 0.05
    assert cell.status == "SUSPECT"
    assert "they are masked. Write differentiable = False where they are not true" in cell.reason
    assert cell.robust_accuracy == found["oblivious"]
