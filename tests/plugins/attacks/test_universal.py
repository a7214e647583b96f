"""UAP: against linear models, whose best perturbation is known, and what it does while it learns."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from guard_plugins.attacks.universal import Uap
from torch import Tensor, nn

from guard import Goal, LearnedAttack, Rng, ThreatModel

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Fit = Callable[..., LearnedAttack]
LINF, L2 = ThreatModel(norm="linf", epsilon=0.1), ThreatModel(norm="l2", epsilon=0.3)
WEIGHT = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Line(nn.Module):
    """Two classes, logits [0, <w, x - 1/2> + bias], that answers images in [0, 1] alone and in eval mode."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(WEIGHT.clone()), bias

    def score(self, images: Tensor) -> Tensor:
        return ((images - 0.5).flatten(1) * self.weight).sum(1) + self.bias

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert images.min() >= 0
        assert images.max() <= 1
        score = self.score(images)
        return torch.stack([torch.zeros_like(score), score], 1)


def spread(count: int, seed: int = 1) -> Tensor:
    """Images in [0.4, 0.6], which no perturbation here takes out of the range."""
    values = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.4 + 0.2 * values).float().double()  # which is how a program's images are kept


def learned(attack: LearnedAttack) -> Tensor:
    found = attack.picture(attack.module)
    assert found is not None
    return found


def note(attack: LearnedAttack) -> dict[str, Any]:
    return json.loads(attack.note)


def longest(threat: ThreatModel) -> Tensor:
    """The perturbation inside the ball that raises the score most."""
    unit = WEIGHT.sign() if threat.norm == "linf" else WEIGHT / WEIGHT.norm()
    return threat.epsilon * unit.view(1, 4, 4)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize(("bias", "way"), [(-0.25, 1), (0.25, -1)])
def test_on_a_linear_model_it_is_the_best_there_is(threat: ThreatModel, bias: float, way: int, fit: Fit) -> None:
    """Away from the class of the majority, by predictions: the labels say the opposite and decide nothing."""
    model, images = Line(bias).eval(), spread(100)
    answers = model(images).argmax(1)
    assert 60 < (answers == (way < 0)).sum() < 95, "there are some of the other class"
    attack = fit(Uap(batch_size=10), model, images, 1 - answers, threat)
    torch.testing.assert_close(learned(attack), way * longest(threat), atol=1e-9, rtol=0)
    again = fit(Uap(batch_size=10), model, images, answers, threat)
    assert torch.equal(learned(attack), learned(again))
    assert [epoch["figures"] for epoch in note(attack)["epochs"]] == [e["figures"] for e in note(again)["epochs"]]


@pytest.mark.parametrize("target", [0, 1])
def test_towards_a_target_it_minds_no_majority(target: int, fit: Fit) -> None:
    model, images = Line(0.25).eval(), spread(100)
    goal = {"targets": target}
    attack = fit(Uap(batch_size=10), model, images, torch.zeros(100, dtype=torch.int64), LINF, goal=goal)
    torch.testing.assert_close(learned(attack), (2 * target - 1) * longest(LINF), atol=1e-9, rtol=0)


def test_a_step_is_a_tenth_of_epsilon_and_a_fifth_less_in_each_pass(fit: Fit) -> None:
    model, images = Line(-2).eval(), spread(20)
    attack = fit(Uap(epochs=3), model, images, torch.zeros(20, dtype=torch.int64), LINF)
    share = 0.1 * (1 + 0.8 + 0.64)
    torch.testing.assert_close(learned(attack), share * longest(LINF), atol=1e-9, rtol=0)


@pytest.mark.parametrize("threat", [L2, LINF], ids=str)
def test_deepfool_adds_the_shortest_way_over_the_boundary(threat: ThreatModel, fit: Fit) -> None:
    """Of a single image: DeepFool's closed form on a linear model, cut off at the ball."""
    model, image = Line(-0.1).eval(), spread(1)
    attack = fit(Uap(by="deepfool", epochs=1), model, image, torch.zeros(1, dtype=torch.int64), threat)
    score = model.score(image)
    way = (1.02 * -score * WEIGHT / WEIGHT.square().sum()).view(1, 4, 4).detach()
    assert way.norm() > 0.01
    assert threat.contains(image + way, image).all()
    torch.testing.assert_close(learned(attack), way, atol=1e-9, rtol=0)
    small = ThreatModel(norm=threat.norm, epsilon=0.01)
    cut = way.clamp(-0.01, 0.01) if threat.norm == "linf" else way * 0.01 / way.norm()
    attack = fit(Uap(by="deepfool", epochs=1), model, image, torch.zeros(1, dtype=torch.int64), small)
    torch.testing.assert_close(learned(attack), cut, atol=1e-9, rtol=0)
    twice = fit(Uap(by="deepfool", epochs=2), model, image, torch.zeros(1, dtype=torch.int64), threat)
    torch.testing.assert_close(learned(twice), way, atol=1e-9, rtol=0)  # it is fooled by then


@pytest.mark.parametrize("by", ["gradient", "deepfool"])
def test_it_fools_more_than_random_signs(by: str, curved: nn.Module, fit: Fit) -> None:
    """On images that it did not learn on."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(300, 3, 4, 4, generator=generator, dtype=torch.float64).float().double()
    labels, others = curved(images).argmax(1), images[100:]
    attack = fit(Uap(by=by, epochs=2, batch_size=10), curved, images[:100], labels[:100], LINF)
    rng = Rng(0, torch.arange(200), (3, 4, 4))
    points = attack.perturb(None, others, Goal(labels[100:]), LINF, rng)  # type: ignore[arg-type]

    def fooled(points: Tensor) -> int:
        return int((curved(points).argmax(1) != labels[100:]).sum())

    signs = [torch.randint(2, (1, 3, 4, 4), generator=generator) * 0.2 - 0.1 for _ in range(20)]
    assert fooled(points) > 70 > max(fooled((others + sign).clamp(0, 1)) for sign in signs)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_it_is_one_perturbation_for_all_images(threat: ThreatModel, fit: Fit) -> None:
    model, images = Line(-0.25).eval(), spread(40)
    attack = fit(Uap(batch_size=10), model, images, torch.zeros(40, dtype=torch.int64), threat)
    others = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    both = torch.cat([spread(9, seed=4), others])
    goal, rng = Goal(torch.zeros(18, dtype=torch.int64)), Rng(0, torch.arange(18), (1, 4, 4))
    points = attack.perturb(None, both, goal, threat, rng)  # type: ignore[arg-type]
    moved = learned(attack)
    torch.testing.assert_close(points[:9] - both[:9], moved.expand(9, -1, -1, -1), atol=1e-9, rtol=0)
    torch.testing.assert_close(points, (both + moved).clamp(0, 1), atol=1e-9, rtol=0)
    assert (points[9:] - others != moved).any(), "some of these are clipped"


@pytest.mark.parametrize("by", ["gradient", "deepfool"])
def test_images_are_clipped_while_it_learns(by: str, fit: Fit) -> None:
    """Black and white images: the model refuses points outside [0, 1]. Where every image is as light as can be and
    lighter would be better, deepfool finds no way, and a gradient that passed the clipping would go to epsilon."""
    model = Line().eval()
    images = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(6)).round().double()
    light = (WEIGHT > 0).view(4, 4) & (torch.arange(16).view(4, 4) % 2 == 0)
    assert 2 < light.sum() < 8
    images[:, :, light] = 1
    model.bias = 0.1 - float(model.score(images).detach().max())  # nearly all are of class 0
    attack = fit(Uap(by=by, epochs=2, batch_size=3), model, images, torch.zeros(30, dtype=torch.int64), LINF)
    found = learned(attack)[0]
    assert found[~light].abs().max() == LINF.epsilon
    most = 0.1 * LINF.epsilon if by == "gradient" else 0.0
    assert (found[light] <= most + 1e-12).all()
    assert (found[light] >= 0).all()


def test_what_it_asks_while_it_learns(fit: Fit) -> None:
    """Two forwards and a backward a pass for each image: what it answers without and with the perturbation. Two more
    forwards, and no backward, for each that is held out."""
    model, images = Line().eval(), spread(50)
    attack = fit(Uap(epochs=3, batch_size=8), model, images, torch.zeros(50, dtype=torch.int64), LINF)
    told = note(attack)
    assert (told["images"], told["held_out"]) == (45, 5)
    assert (told["forwards"], told["backwards"]) == (3 * 2 * 50, 3 * 45)
