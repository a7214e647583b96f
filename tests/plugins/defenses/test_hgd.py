"""HGD: what it minimises, on which images, what it is judged by, and what it restores of a network's accuracy."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guard_plugins.attacks.pgd import PGD
from guard_plugins.defenses.crafting import drawn
from guard_plugins.defenses.hgd import Hgd
from torch import Generator, Tensor, nn

import guard
from guard import Goal, InputError, Registry, Step, ThreatModel, Victim, held
from guard.rng import seeded

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

LINF, L2 = ThreatModel(norm="linf", epsilon=0.1), ThreatModel(norm="l2", epsilon=0.5)


class Maps(nn.Module):
    """Four classes, by two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 2), nn.Linear(5, 4)

    def maps(self, images: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(images)))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.maps(images).tanh().mean((2, 3)))
        return logits


class Halves(nn.Module):
    """Takes a share of an image off it, which can be learned; notes what it is given."""

    def __init__(self, share: float = 0.2) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share, dtype=torch.float64))
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.given.append(images.detach())
        return -self.share * images


@pytest.fixture
def model() -> nn.Module:
    with seeded(0, torch.device("cpu")):
        return Maps().double().eval()


def step_of(module: nn.Module, images: Tensor, threat: ThreatModel = LINF, seed: int = 3) -> Step:
    labels = torch.arange(len(images)) % 4
    return Step(module, images, images, labels, lambda: images.sum(), threat, 0, 1, Generator().manual_seed(seed), {})


def crafted(model: nn.Module, images: Tensor, threat: ThreatModel, most: int, seed: int = 3) -> tuple[Tensor, int]:
    """The images that a step with this seed learns on, and the number of steps."""
    generator, labels = Generator().manual_seed(seed), torch.arange(len(images)) % 4
    steps = int(torch.randint(1, most + 1, (), generator=generator))
    if steps == 1:
        drawn(images, generator)
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
        adversarial = (images + threat.epsilon * gradient.sign()).clamp(0, 1)
    else:
        rng = drawn(images, generator)
        victim = Victim(model, images, rng, drop=False)
        adversarial = PGD(steps=steps).perturb(victim, images, Goal(labels), threat, rng)
    share = torch.rand(len(images), generator=generator).double()
    return images + share.view(-1, 1, 1, 1) * (adversarial - images), steps


@pytest.mark.parametrize(("seed", "steps"), [(2, 1), (1, 2), (0, 3)])
def test_it_minimises_the_distance_of_the_logits_to_the_clean_ones(
    seed: int, steps: int, model: nn.Module, images: Tensor
) -> None:
    """Of adversarial images, each as far from its own as a draw says, that the module restored."""
    module = Halves()
    with held(model):
        loss = Hgd(steps=3).objective(step_of(module, images, seed=seed), model)
        points, taken = crafted(model, images, LINF, 3, seed)
        assert taken == steps
        assert torch.equal(module.given[0], points)
        expected = (model((points - module.share * points).clamp(0, 1)) - model(images)).abs().mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(value, module.share)[0] for value in (loss, expected)]
    assert slopes[0].abs() > 1e-4
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("layer", "expected"), [(None, "second"), ("first", "first")])
def test_or_the_distance_of_features(layer: str | None, expected: str, model: Any, images: Tensor) -> None:
    """Of the last maps, or of the layer that is named; the gradient reaches the module."""
    module = Halves()
    answers = {"second": model.maps, "first": model.first}[expected]
    with held(model):
        defense = Hgd(guide="features", layer=layer, steps=1)
        loss = defense.objective(step_of(module, images), model)
        points, _ = crafted(model, images, LINF, 1)
        distance = (answers(points - module.share * points) - answers(images)).abs().mean()
    torch.testing.assert_close(loss, distance, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(value, module.share)[0] for value in (loss, distance)]
    assert slopes[0].abs() > 1e-4
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=0)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("own", [None, 0.05])
def test_each_image_is_attacked_as_far_as_its_own_draw_says(
    threat: ThreatModel, own: float | None, model: nn.Module, images: Tensor
) -> None:
    """Up to epsilon, or the defense's own; by one step, and by several."""
    module, many = Halves(), images.repeat(8, 1, 1, 1)
    ball = ThreatModel(norm=threat.norm, epsilon=own or threat.epsilon)
    with held(model):
        for seed in range(4):
            Hgd(steps=2, epsilon=own).objective(step_of(module, many, threat, seed), model)
    for points in module.given:
        assert ball.contains(points, many).all()
        assert 0 <= points.min() <= points.max() <= 1
        shares = ball.distance(points, many) / ball.epsilon
        assert shares.min() < 0.1
        assert shares.max() > 0.85
        assert 0.35 < shares.mean() < 0.6
    assert len({float((points != many).double().mean()) for points in module.given}) > 1


def test_it_is_judged_by_answers_that_are_restored_and_kept(curved: nn.Module, images: Tensor) -> None:
    """To all of epsilon, by `steps` steps; what is right is what the network answers without it."""
    labels, module = torch.arange(8) % 4, Halves(0.0)
    defense, generator = Hgd(steps=3), Generator().manual_seed(5)
    threat = ThreatModel(norm="linf", epsilon=0.3)
    with held(curved):
        seen = defense.seen(module, curved, images, labels, threat, generator)
        rng = drawn(images, Generator().manual_seed(5))
        victim = Victim(curved, images, rng, drop=False)
        points = PGD(steps=3).perturb(victim, images, Goal(labels), threat, rng)
        restored = curved(points).argmax(1) == curved(images).argmax(1)
    assert list(seen) == ["adversarial restored", "clean kept"]
    assert torch.equal(module.given[0], points)
    assert torch.equal(seen["adversarial restored"], restored)
    assert not restored.all()
    assert seen["clean kept"].all()


def brittle() -> nn.Module:
    """Digits by their nearest mean, and by directions in which no digit differs from another."""
    data = Registry.load().create("dataset", "digits").load("train")
    images, net = data.floats().flatten(1), nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 64, 10))
    means = torch.stack([images[data.labels == number].mean(0) for number in range(10)])
    blind = 60 * torch.linalg.svd(images).Vh[-10:]
    net[1].load_state_dict({"weight": 4 * means + blind, "bias": -2 * means.square().sum(1) - blind @ images.mean(0)})
    return net


def test_it_restores_most_of_what_an_oblivious_attack_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path))
    tiny = {"name": "hgd", "width": 4, "epochs": 5, "batch_size": 32, "lr": 1e-2, "steps": 2}
    cells = guard.evaluate(
        brittle(), "digits", attacks=["pgd"], threat={"norm": "linf", "epsilon": 0.05},
        defenses=["none", tiny], knowledge=["adaptive", "oblivious"], limit=100,
    ).cells  # fmt: skip
    found = {(cell.defense, cell.knowledge): cell for cell in cells if cell.status == "VALID"}
    bare, adaptive, oblivious = (
        found[which] for which in (("none", "adaptive"), ("hgd", "adaptive"), ("hgd", "oblivious"))
    )
    assert len(found) == 3
    assert abs(oblivious.clean_accuracy - bare.clean_accuracy) < 0.05
    assert bare.robust_accuracy < 0.4
    assert oblivious.robust_accuracy > 0.75
    assert adaptive.robust_accuracy <= oblivious.robust_accuracy
    assert {candidate.name for candidate in adaptive.candidates} == {"gradient", "smoothed", "oblivious"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"guide": "features"},
            "no layer of the model answers with maps. Give defense 'hgd' a layer, or guide: logits",
        ),
        ({"guide": "features", "layer": "2"}, "the model has no layer '2'"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(given: Any, text: str, images: Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 48, 4).double()).eval()
    with held(net), pytest.raises(InputError) as caught:
        Hgd(**given).objective(step_of(Halves(), images), net)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_what_it_cannot_do_is_refused_in_a_line(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(InputError) as caught:
        Hgd(layer="first")
    assert "layer is of guide features, and the guide is logits" in str(caught.value)
    assert "\n" not in str(caught.value)
    endless = ThreatModel(norm="l2", epsilon=float("inf"))
    with held(model), pytest.raises(InputError, match="epsilon is inf: defense 'hgd'"):
        Hgd().objective(step_of(Halves(), images, endless), model)


def test_it_leaves_the_network_as_it_is(model: nn.Module, images: Tensor) -> None:
    before = copy.deepcopy(model.state_dict())
    with held(model):
        Hgd(steps=2).objective(step_of(Halves(), images), model).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
