"""What every registered attack keeps, and parity of the sign attacks with loops written out by hand."""

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import guard
from guard import Attack, Goal, InputError, LearnedAttack, MinimalAttack, Registry, Rng, ThreatModel, Victim
from guard.execution import faster

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Make = Callable[..., Victim]
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


@pytest.fixture
def goal(curved: nn.Module, images: Tensor) -> Goal:
    """Labels as the model sees the images, one of them wrong."""
    labels = curved(images).argmax(1)
    labels[3] = (labels[3] + 1) % 4
    return Goal(labels)


def perturb(attack: Attack, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, **rng: Any) -> Tensor:
    index = rng.get("index", torch.arange(len(images)))
    return attack.perturb(victim, images, goal, threat, Rng(rng.get("seed", 0), index, tuple(images.shape[1:])))


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
    name: str, norm: str, create: Callable[[str], Attack], make_victim: Make, linear: Callable[..., nn.Module]
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
    name: str, norm: str, create: Callable[[str], Attack], monkeypatch: pytest.MonkeyPatch
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
    name: str, norm: str, create: Callable[[str], Attack], make_victim: Make, linear: Callable[..., nn.Module]
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
    name: str, create: Callable[[str], Attack], make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    threat = ThreatModel(norm="l2", epsilon=0.1)
    results = [
        perturb(create(name), make_victim(curved, images, drop=False), images, goal, threat, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(results[0], results[1])
    assert (results[0] != results[2]).flatten(1).any(1).all()


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mi-fgsm"])
def test_linf_equals_a_loop_by_hand(
    name: str, targeted: bool, make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    epsilon, steps, decay = 0.08, 6, 0.7
    goal = Goal(goal.labels, (goal.labels + 1) % 4) if targeted else goal
    threat = ThreatModel(norm="linf", epsilon=epsilon)
    spec: dict[str, Any] = {"name": name}
    spec |= {} if name == "fgsm" else {"steps": steps}
    spec |= {"decay": decay} if name == "mi-fgsm" else {}
    adversarial = perturb(
        REGISTRY.create("attack", spec), make_victim(curved, images, drop=False), images, goal, threat
    )

    step = {"fgsm": epsilon, "bim": epsilon / steps, "mi-fgsm": epsilon / steps, "pgd": 2.5 * epsilon / steps}[name]
    rng = Rng(0, torch.arange(8), (3, 4, 4)).fold(0)
    x = threat.random_start(images, rng) if name == "pgd" else images
    velocity = torch.zeros_like(x)
    for _ in range(1 if name == "fgsm" else steps):
        x = x.detach().requires_grad_()
        sign, classes = (1, goal.labels) if goal.targets is None else (-1, goal.targets)
        (sign * F.cross_entropy(curved(x), classes, reduction="sum")).backward()
        assert x.grad is not None
        velocity = decay * velocity + x.grad / x.grad.abs().sum((1, 2, 3), keepdim=True)
        x = x.detach() + step * (velocity if name == "mi-fgsm" else x.grad).sign()
        x = x.clamp(images - epsilon, images + epsilon).clamp(0, 1)
    torch.testing.assert_close(adversarial, x, atol=1e-7, rtol=0)
    assert not torch.equal(x, images)


def test_l2_pgd_equals_a_loop_by_hand_inside_the_range(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    inner, epsilon = images * 0.2 + 0.4, 0.3
    threat = ThreatModel(norm="l2", epsilon=epsilon)
    attack = REGISTRY.create("attack", {"name": "pgd", "steps": 5, "step_size": 0.2})
    adversarial = perturb(attack, make_victim(curved, inner, drop=False), inner, goal, threat)
    x = threat.random_start(inner, Rng(0, torch.arange(8), (3, 4, 4)).fold(0))
    for _ in range(5):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(curved(x), goal.labels, reduction="sum"), x)
        moved = x.detach() + 0.2 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - inner
        x = inner + moved * (epsilon / moved.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(adversarial, x, atol=1e-7, rtol=0)


def test_momentum_is_scaled_by_each_images_own_gradient(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    """An image whose gradient is 1e-12 as large moves as far as alone, and one with none stays and harms nobody."""

    class Scaled(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = curved(points)
            return logits * points.new_tensor([1, 1e-12, 0, 1]).repeat(2)[: len(points), None]

    attack, threat = (
        REGISTRY.create("attack", {"name": "mi-fgsm", "loss": "margin"}),
        ThreatModel(norm="l2", epsilon=0.3),
    )
    adversarial = perturb(attack, make_victim(Scaled(), images, drop=False), images, goal, threat)
    plain = perturb(attack, make_victim(curved, images, drop=False), images, goal, threat)
    assert torch.equal(adversarial[[2, 6]], images[[2, 6]])
    torch.testing.assert_close(adversarial[[0, 1, 3, 4, 5, 7]], plain[[0, 1, 3, 4, 5, 7]], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["pgd", "bim", "mi-fgsm"])
def test_without_a_bound_a_step_size_is_asked_for(
    name: str, make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    threat = ThreatModel(norm="l2", epsilon=math.inf)
    with pytest.raises(InputError) as caught:
        perturb(REGISTRY.create("attack", name), make_victim(curved, images), images, goal, threat)
    assert str(caught.value) == f"epsilon is inf: give attack '{name}' a step_size"
    given = REGISTRY.create("attack", {"name": name, "step_size": 0.5, "steps": 20})
    adversarial = perturb(given, make_victim(curved, images), images, goal, threat)
    assert goal.reached(curved(adversarial)).all()


def test_fgsm_needs_a_bound(make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal) -> None:
    with pytest.raises(InputError, match="Give a finite epsilon"):
        perturb(
            REGISTRY.create("attack", "fgsm"),
            make_victim(curved, images),
            images,
            goal,
            ThreatModel(norm="l1", epsilon=math.inf),
        )


@pytest.mark.parametrize("size", [0, -1, math.inf, math.nan, True, "8/0"])
@pytest.mark.parametrize("name", ["pgd", "bim"])
def test_a_step_size_is_finite_and_above_0(name: str, size: object) -> None:
    with pytest.raises(InputError, match=rf"^step_size of attack '{name}': \S+ .*; write (8/255 or 0\.3|a number)$"):
        REGISTRY.create("attack", {"name": name, "step_size": size})


def test_noise_keeps_the_first_draw_that_works_and_counts_what_it_asked(
    make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    threat = ThreatModel(norm="linf", epsilon=0.25)
    victim = make_victim(curved, images, access="logits")
    adversarial = perturb(REGISTRY.create("attack", {"name": "noise", "draws": 30}), victim, images, goal, threat)
    rng = Rng(0, torch.arange(8), (3, 4, 4))
    draws = [threat.random_start(images, rng) for _ in range(30)]
    reached = torch.stack([goal.reached(curved(draw)) for draw in draws])
    for row in range(8):
        first = int(reached[:, row].nonzero()[0]) if reached[:, row].any() else 29
        assert torch.equal(adversarial[row], draws[first][row])
        assert victim.counts.forwards[row] == first + 1
    assert len(set(victim.counts.forwards.tolist())) > 2, "some must find one early, some late"


def test_noise_stops_where_its_budget_ends(make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal) -> None:
    victim = make_victim(curved, images, access="logits", max_queries=4)
    perturb(REGISTRY.create("attack", "noise"), victim, images, goal, ThreatModel(norm="linf", epsilon=0.01))
    assert victim.counts.forwards.max() == 4


def test_saved_finds_each_image_by_its_index(
    tmp_path: Path, make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    np.savez(tmp_path / "a.npz", adversarial=images[[5, 1]].numpy() * 0.5, indices=np.array([5, 1]))
    attack = REGISTRY.create("attack", {"name": "saved", "path": str(tmp_path / "a.npz")})
    threat = ThreatModel(norm="linf", epsilon=1)
    index = torch.tensor([1, 2, 5])
    victim = make_victim(curved, images[index], index=index, access="transfer")
    result = perturb(attack, victim, images[index], goal[index], threat, index=index)
    assert torch.equal(result, torch.stack([images[1] * 0.5, images[2], images[5] * 0.5]))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"indices": np.arange(2)}, "lacks adversarial. Save adversarial and indices"),
        (
            {"adversarial": np.zeros((2, 3, 4, 4)), "indices": np.arange(3)},
            "holds 2 images and 3 indices. Save one for each",
        ),
        ({"adversarial": np.zeros((2, 1, 4, 4)), "indices": np.arange(2)}, "Save them from the same data set"),
    ],
)
def test_a_saved_file_that_does_not_fit_is_refused(
    arrays: dict[str, Any],
    message: str,
    tmp_path: Path,
    make_victim: Make,
    curved: nn.Module,
    images: Tensor,
    goal: Goal,
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    attack = REGISTRY.create("attack", {"name": "saved", "path": str(tmp_path / "a.npz")})
    with pytest.raises(InputError, match=message):
        perturb(attack, make_victim(curved, images), images, goal, ThreatModel(norm="linf", epsilon=1))


@pytest.mark.parametrize("content", [b"", b"not numpy", b"PK\x03\x04broken", None])
def test_a_saved_file_that_is_none_is_refused(
    content: bytes | None, tmp_path: Path, make_victim: Make, curved: nn.Module, images: Tensor, goal: Goal
) -> None:
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    attack = REGISTRY.create("attack", {"name": "saved", "path": str(path)})
    with pytest.raises(InputError, match=r"is no \.npz file|finds no file"):
        perturb(attack, make_victim(curved, images), images, goal, ThreatModel(norm="linf", epsilon=1))


def test_plugins_use_only_guards_public_names() -> None:
    """What ships comes by the same door as a third party's."""
    root = Path(__file__).parents[3] / "plugins"
    files = sorted(root.rglob("*.py"))
    assert len(files) > 5
    wrong = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{file.relative_to(root)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom):
                package = (node.module or "").split(".")[0]
                names = {alias.name for alias in node.names}
                if node.level or (package == "guard" and (node.module != "guard" or not names <= set(guard.__all__))):
                    wrong.append(f"{where} from {node.module} import {', '.join(sorted(names))}")
                if package == "guard_plugins" and any(name.startswith("_") for name in names):
                    wrong.append(f"{where} imports a private name")
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "guard":
                wrong += [] if node.attr in guard.__all__ else [f"{where} guard.{node.attr}"]
            elif isinstance(node, ast.Import):
                wrong += [f"{where} import {alias.name}" for alias in node.names if alias.name.startswith("guard.")]
    assert wrong == []


def test_plugins_load_without_what_is_slow_to_import() -> None:
    """torchvision, scipy, scikit-learn, kornia and matplotlib belong inside functions."""
    slow = {"torchvision", "scipy", "sklearn", "kornia", "matplotlib"}
    root = Path(__file__).parents[3] / "plugins"
    wrong = []
    for file in sorted(root.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            wrong += [f"{file.relative_to(root)}: {name}" for name in modules if name.split(".")[0] in slow]
    assert wrong == []
