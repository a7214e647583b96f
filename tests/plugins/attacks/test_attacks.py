"""What every registered attack keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guard import Attack, Goal, LearnedAttack, MinimalAttack, Registry, Rng, ThreatModel, Victim
from guard.execution import faster

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
Perturb = Callable[..., Tensor]
EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 1.5}
REGISTRY = Registry.load()
CASES = [
    pytest.param(name, norm, id=f"{name}-{norm}")
    for name, found in sorted(REGISTRY.classes["attack"].items())
    for norm in sorted(found.norms)  # type: ignore[attr-defined]
]
SMALL: dict[str, dict[str, Any]] = {
    "advgan": {"epochs": 3, "lr": 0.01},
    "apgd": {"steps": 12},
    "atn": {"epochs": 3, "hidden": 16},
    "autoattack": {},
    "cw": {"steps": 12, "searches": 3},
    "deepfool": {"steps": 8},
    "fab": {"steps": 6, "restarts": 2},
    "fast-autoattack": {"runs": 2, "queries": 20},
    "l-bfgs": {"evaluations": 6, "searches": 3},
    "multi-targeted": {"steps": 5},
    "simba-dct": {"queries": 60},
    "square": {"queries": 60, "restarts": 2},
}
"""Less than the defaults, where those take long."""


@pytest.fixture(autouse=True)
def short_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack has no budget to turn down; its members get a small one."""
    from guard_plugins.attacks import advgan, autoattack, fast_autoattack

    class Enlarged(advgan.Generator):
        """For images of 4 x 4, which halved twice would leave nothing to normalise."""

        def forward(self, points: Tensor) -> Tensor:
            return super().forward(F.interpolate(points, scale_factor=2))[:, :, ::2, ::2]

    def small(kind: type[Attack], **less: int) -> Callable[..., Attack]:
        return lambda **given: kind(**given | less)

    monkeypatch.setattr(advgan, "Generator", Enlarged)
    monkeypatch.setattr(autoattack, "APGD", small(autoattack.APGD, steps=5))
    monkeypatch.setattr(autoattack, "FAB", small(autoattack.FAB, steps=3))
    monkeypatch.setattr(autoattack, "Square", small(autoattack.Square, queries=30))
    monkeypatch.setattr(fast_autoattack, "GLANCE", 10)


@pytest.fixture
def create(
    tmp_path: Path, images: Tensor, curved: nn.Module, fit: Callable[..., LearnedAttack]
) -> Callable[..., Attack]:
    """create(name) -> the attack with its defaults, or less; 'saved' gets a file, and what learns has learned in
    `norm`, against `model` on `points`."""

    def make(name: str, norm: str = "linf", model: nn.Module = curved, points: Tensor = images) -> Attack:
        if name != "saved":
            attack: Attack = REGISTRY.create("attack", {"name": name} | SMALL.get(name, {}))
            if not isinstance(attack, LearnedAttack):
                return attack
            threat = ThreatModel(norm=norm, epsilon=EPSILON[norm])
            return fit(attack, model, points, model(points).argmax(1), threat)
        path = tmp_path / "saved.npz"
        np.savez(path, adversarial=(images * 0.99).numpy(), indices=np.arange(8))
        return REGISTRY.create("attack", {"name": name, "path": str(path)})  # type: ignore[no-any-return]

    return make


@pytest.mark.parametrize("drop", [True, False], ids=["drop", "keep"])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_result_depends_on_neither_batch_size_nor_order(
    name: str,
    norm: str,
    drop: bool,
    create: Callable[[str], Attack],
    make_victim: Make,
    curved: nn.Module,
    images: Tensor,
    goal: Goal,
    perturb: Perturb,
) -> None:
    attack, threat = create(name, norm), ThreatModel(norm=norm, epsilon=EPSILON[norm])

    def of(rows: Tensor) -> Tensor:
        victim = make_victim(curved, images[rows], index=rows, drop=drop, access=attack.access)
        return perturb(attack, victim, images[rows].clone(), goal[rows], threat, index=rows)

    whole = of(torch.arange(8))
    assert whole.shape == images.shape
    assert whole.dtype == images.dtype
    assert whole.isfinite().all()
    if name != "saved":
        assert threat.contains(whole, images).all()
    assert whole.min() >= 0
    assert whole.max() <= 1
    rounding = {"atol": 1e-14 if name == "atn" else 0.0, "rtol": 0.0}  # of a product of matrices of another size
    for size in (1, 3):
        parts = torch.cat([of(rows) for rows in torch.arange(8).split(size)])
        torch.testing.assert_close(parts, whole, **rounding)
    backwards = torch.arange(7, -1, -1)
    assert torch.equal(of(backwards), whole[backwards])


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_saturated_and_constant_models_give_no_nan(
    name: str,
    norm: str,
    create: Callable[[str], Attack],
    make_victim: Make,
    linear: Callable[..., nn.Module],
    perturb: Perturb,
) -> None:
    """A zero gradient: from a constant model, and in float32 from logits a thousand apart."""
    images = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    threat = ThreatModel(norm=norm, epsilon=EPSILON[norm])
    bias = torch.tensor([1e3, 0, -1e3, 5])
    for model in (linear(torch.zeros(4, 48), bias), linear(1e-3 * torch.ones(4, 48), bias)):
        layers = nn.Sequential(model, nn.Identity())  # an attack on features needs a hidden one
        attack = create(name, norm, layers, images)
        victim = make_victim(layers, images, access=attack.access)
        adversarial = perturb(attack, victim, images.clone(), Goal(torch.zeros(4, dtype=torch.int64)), threat)
        assert adversarial.isfinite().all()
        if name != "saved":
            assert threat.contains(adversarial, images).all()
        assert not victim.counts.broken.any()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_images_that_were_handed_over_are_left_alone(
    name: str,
    norm: str,
    create: Callable[[str], Attack],
    make_victim: Make,
    curved: nn.Module,
    images: Tensor,
    goal: Goal,
    perturb: Perturb,
) -> None:
    attack, given = create(name, norm), images.clone()
    victim = make_victim(curved, images, access=attack.access)
    perturb(attack, victim, given, goal, ThreatModel(norm=norm, epsilon=EPSILON[norm]))
    assert torch.equal(given, images)


class Conv(nn.Module):
    """A small network that has a faster execution."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.conv, self.norm = nn.utils.skip_init(nn.Conv2d, 3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.out = nn.utils.skip_init(nn.Linear, 6, 4)
        for parameter in (*self.conv.parameters(), *self.out.parameters()):
            nn.init.normal_(parameter, generator=generator)
        points = torch.rand(64, 3, 4, 4, generator=generator)
        with torch.no_grad():
            self.out.bias -= self.eval()(points).mean(0)  # so that no class prevails

    def forward(self, points: Tensor) -> Tensor:
        return self.out(F.relu(self.norm(self.conv(points - 0.5))).mean((2, 3)))


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_faster_execution_claims_nothing_that_the_model_does_not_confirm(
    name: str, norm: str, create: Callable[[str], Attack], monkeypatch: pytest.MonkeyPatch, perturb: Perturb
) -> None:
    """Folded and in channels_last it breaks the same images; in bf16 others may fall, but no success is false."""
    monkeypatch.setattr("guard.execution.SMALL", 0)
    model = Conv()
    images = torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    twin = faster(model, images)
    assert twin is not model
    goal, attack = Goal(model(images).argmax(1)), create(name, norm, model, images)
    threat = ThreatModel(norm=norm, epsilon=EPSILON[norm] / 2)
    broken = {}
    for lever, settings in {
        "none": {},
        "search": {"search": twin},
        "bf16": {"search": twin, "bf16": attack.bf16},
    }.items():
        claimed = []

        class Listening(Victim):
            def reached(self, points: Tensor, goal: Goal, logits: Tensor) -> Tensor:
                found = super().reached(points, goal, logits)
                for transform, bound in self._maps:  # to what the model sees
                    points = transform(points, bound)
                claimed.append((points[found], goal[found]))  # noqa: B023
                return found

        rng = Rng(0, torch.arange(24), (3, 4, 4), 1)
        victim = Listening(model, images, rng, access=attack.access, **settings)  # type: ignore[arg-type]
        adversarial = perturb(attack, victim, images.clone(), goal, threat)
        broken[lever] = goal.reached(model(adversarial))
        # up to what float32 leaves in a batch of another size, of points that lie on the boundary by intention
        assert all((aim.margin(model(points)) <= 1e-5).all() for points, aim in claimed)
    if not isinstance(attack, MinimalAttack):  # whose points end next to the boundary by intention
        assert torch.equal(broken["search"], broken["none"])
    assert (broken["search"] ^ broken["none"]).sum() <= 1
    assert (broken["bf16"] ^ broken["none"]).sum() <= (2 if attack.bf16 else 1)
    if name not in ("atn", "noise", "saved"):  # of what learned without a bound little is left inside one
        assert 2 <= broken["none"].sum() <= 22


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_an_attack_costs_at_most_what_it_says(
    name: str,
    norm: str,
    create: Callable[[str], Attack],
    make_victim: Make,
    linear: Callable[..., nn.Module],
    perturb: Perturb,
) -> None:
    """On images that do not fall; for the attacks with a fixed number of steps exactly that."""
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    weight = 1e-3 * torch.randn(4, 48, generator=torch.Generator().manual_seed(3)).double()
    threat = ThreatModel(norm=norm, epsilon=EPSILON[norm])
    model = nn.Sequential(linear(weight, torch.tensor([90.0, 0, 1, 2]).double()), nn.Identity())
    attack = create(name, norm, model, images)
    cost = attack.cost(4)
    assert cost is not None
    victim = make_victim(model, images, access=attack.access)
    perturb(attack, victim, images.clone(), Goal(torch.zeros(2, dtype=torch.int64)), threat)
    forwards, backwards = victim.counts.forwards.max(), victim.counts.backwards.max()
    if (name, norm) == ("autoattack", "l1"):  # more restarts than it states, which is for linf
        return
    assert forwards <= cost.forwards
    assert backwards <= cost.backwards
    if name not in ("autoattack", "cw", "deepfool", "fab", "fast-autoattack", "l-bfgs"):
        assert (forwards, backwards) == cost


@pytest.mark.parametrize("name", ["pgd", "noise"])
def test_another_seed_gives_another_start(
    name: str,
    create: Callable[[str], Attack],
    make_victim: Make,
    curved: nn.Module,
    images: Tensor,
    goal: Goal,
    perturb: Perturb,
) -> None:
    threat = ThreatModel(norm="l2", epsilon=0.1)
    results = [
        perturb(create(name), make_victim(curved, images, drop=False), images, goal, threat, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(results[0], results[1])
    assert (results[0] != results[2]).flatten(1).any(1).all()
