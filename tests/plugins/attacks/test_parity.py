"""The sign attacks make the images that torchattacks makes, from the same start and with the same steps.

Where torchattacks starts at random, both start at the image. Its MIFGSM divides a gradient by the mean of its absolute
values, as ours does; where that is zero it divides 0 by 0 (NaN), which no image here has.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard import Goal, Registry, Rng, ThreatModel, Victim

torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")

EPSILON, STEPS = 0.08, 7
REGISTRY = Registry.load()
PAIRS: dict[str, tuple[dict[str, Any], Callable[[nn.Module], Any]]] = {
    "fgsm": ({"name": "fgsm"}, lambda model: torchattacks.FGSM(model, eps=EPSILON)),
    "bim": (
        {"name": "bim", "steps": STEPS, "step_size": 0.02},
        lambda model: torchattacks.BIM(model, eps=EPSILON, alpha=0.02, steps=STEPS),
    ),
    "pgd": (
        {"name": "bim", "steps": STEPS, "step_size": 0.03},
        lambda model: torchattacks.PGD(model, eps=EPSILON, alpha=0.03, steps=STEPS, random_start=False),
    ),
    "mi-fgsm": (
        {"name": "mi-fgsm", "steps": STEPS, "step_size": 0.02, "decay": 0.9},
        lambda model: torchattacks.MIFGSM(model, eps=EPSILON, alpha=0.02, steps=STEPS, decay=0.9),
    ),
}


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("name", PAIRS)
def test_it_makes_the_images_that_torchattacks_makes(
    name: str, targeted: bool, make_victim: Callable[..., Victim], curved: nn.Module, images: Tensor
) -> None:
    spec, theirs = PAIRS[name]
    labels = curved(images).argmax(1)
    targets = (labels + 1) % 4 if targeted else None
    other = theirs(curved.eval())
    if targeted:
        other.set_mode_targeted_by_label(quiet=True)
    expected = other(images, labels if targets is None else targets)
    victim = make_victim(curved, images, drop=False)
    rng = Rng(0, torch.arange(8), (3, 4, 4))
    threat = ThreatModel(norm="linf", epsilon=EPSILON)
    adversarial = REGISTRY.create("attack", spec).perturb(victim, images, Goal(labels, targets), threat, rng)
    torch.testing.assert_close(adversarial, expected.to(adversarial), atol=1e-7, rtol=0)
    assert not torch.equal(adversarial, images)


def test_pgds_start_is_the_only_other_difference(
    make_victim: Callable[..., Victim], curved: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchattacks draws its start from the global generator; with ours in its place the images agree."""
    labels, threat = curved(images).argmax(1), ThreatModel(norm="linf", epsilon=EPSILON)
    rng = Rng(0, torch.arange(8), (3, 4, 4))
    start = threat.random_start(images, rng.fold(0)) - images
    monkeypatch.setattr(Tensor, "uniform_", lambda self, low, high: self.copy_(start))
    expected = torchattacks.PGD(curved.eval(), eps=EPSILON, alpha=0.03, steps=STEPS)(images, labels)
    monkeypatch.undo()
    attack = REGISTRY.create("attack", {"name": "pgd", "steps": STEPS, "step_size": 0.03})
    victim = make_victim(curved, images, drop=False)
    adversarial = attack.perturb(victim, images, Goal(labels), threat, Rng(0, torch.arange(8), (3, 4, 4)))
    torch.testing.assert_close(adversarial, expected.to(adversarial), atol=1e-7, rtol=0)
