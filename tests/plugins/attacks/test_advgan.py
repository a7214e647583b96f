"""AdvGAN: its losses written out, whose gradients go where, the schedule of distillation, and what it asks."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guard_plugins.attacks.advgan import AdvGan, Networks
from torch import Tensor, nn

from guard import Goal, InputError, LearnedAttack, Rng, Step, ThreatModel, Victim, held
from guard.rng import seeded

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Fit = Callable[..., LearnedAttack]
LINF, L2 = ThreatModel(norm="linf", epsilon=0.2), ThreatModel(norm="l2", epsilon=1.0)
CPU = torch.device("cpu")


class Net(nn.Module):
    """Three classes of images (1, 8, 8), with what behaves otherwise in training; notes its mode at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.skip_init(nn.Linear, 64, 12)
        self.norm, self.drop = nn.BatchNorm1d(12), nn.Dropout(0.5)
        self.last = nn.utils.skip_init(nn.Linear, 12, 3)
        generator = torch.Generator().manual_seed(1)
        for layer in (self.first, self.last):
            nn.init.normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        self.modes: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.modes.add(self.training)
        logits: Tensor = self.last(self.drop(self.norm(self.first((images - 0.5).flatten(1)).relu())))
        return logits


class Blind(Net):
    """Gives no gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach()).detach()


def pictures(count: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def draws(count: int) -> Rng:
    return Rng(0, torch.arange(count), (1, 8, 8))


def step_of(net: nn.Module, images: Tensor, threat: ThreatModel, epoch: int = 0) -> Step:
    rows = torch.arange(len(images))
    return Step(net, images, images, rows, lambda: images.sum(), threat, epoch, 9, torch.Generator(), {})


def networks(attack: AdvGan, strength: float = 2.0) -> Networks:
    """Fresh ones, with weights so much larger where the generator ends."""
    with seeded(0, CPU):
        net = attack.unfitted(3, (1, 8, 8))
    with torch.no_grad():
        net.generator.layers[-2].weight.mul_(strength)  # type: ignore[operator]
    return net


def parts(attack: AdvGan, net: Networks, model: nn.Module, x: Tensor, goal: Goal, threat: ThreatModel) -> Tensor:
    """L_adv, L_GAN, L_hinge and the discriminator's loss, image after image, from the paper's formulas."""
    rows = []
    for number in range(len(x)):
        image = x[number : number + 1]
        added = threat.epsilon * net.generator(image)
        if threat.norm == "l2":
            added = added / (added.norm() / threat.epsilon).clamp(min=1)
        fake = (image + added).clamp(0, 1)
        z, y = model(fake)[0], goal.labels[number]
        wrong = torch.arange(3) != (y if goal.targets is None else goal.targets[number])
        if attack.loss == "cross-entropy":
            own = F.log_softmax(z, 0)[~wrong].sum()
            loss = own if goal.targets is None else -own
        else:
            gap = z[~wrong].sum() - z[wrong].max()
            loss = F.relu((gap if goal.targets is None else -gap) + attack.confidence)
        allowed = attack.c * threat.epsilon * (8 if threat.norm == "linf" else 1)  # 64 values
        hinge = F.relu(added.square().sum().sqrt() - allowed)
        judging = (net.discriminator(image) - 1) ** 2 + net.discriminator(fake.detach()) ** 2
        rows.append(torch.stack([loss, (net.discriminator(fake)[0] - 1) ** 2, hinge, judging[0]]))
    return torch.stack(rows).mean(0)


CASES = [
    (AdvGan(), LINF, False),
    (AdvGan(confidence=0.7, alpha=0.3, beta=2.5, c=0.2), LINF, False),
    (AdvGan(confidence=0.7, alpha=3, beta=0.5), L2, True),
    (AdvGan(loss="cross-entropy", c=0.7), L2, False),
    (AdvGan(loss="cross-entropy", beta=3, c=0.24), LINF, True),
]


@pytest.mark.parametrize(("attack", "threat", "targeted"), CASES)
def test_its_losses_are_the_papers_and_each_network_follows_its_own(
    attack: AdvGan, threat: ThreatModel, targeted: bool
) -> None:
    model, net, images = Net().double(), networks(attack).double(), pictures(12).double()
    labels = model.eval()(images).argmax(1)
    goal = Goal(labels, (labels + 1) % 3) if targeted else Goal(labels)
    victim = Victim(model.train(), images, draws(12), drop=False)
    with held(model):
        total = attack.objective(step_of(net, images, threat), victim, goal)
        total.backward()
        adversarial, natural, hinge, judging = parts(attack, net, model, images, goal, threat)
        generating = adversarial + attack.alpha * natural + attack.beta * hinge
        torch.testing.assert_close(total, generating + judging, atol=1e-9, rtol=0)
        for network, own in ((net.generator, generating), (net.discriminator, judging)):
            weights = list(network.parameters())
            wanted = torch.autograd.grad(own, weights, retain_graph=True)
            for weight, gradient in zip(weights, wanted, strict=True):
                assert weight.grad is not None
                torch.testing.assert_close(weight.grad, gradient, atol=1e-9, rtol=1e-6)
            assert max(float(gradient.abs().max()) for gradient in wanted) > 1e-3
    assert adversarial != 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert victim.counts.forwards.tolist() == victim.counts.backwards.tolist() == [1] * 12


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_the_hinge_is_each_images_own(threat: ThreatModel) -> None:
    """Some perturbations are longer than is allowed, others shorter."""
    net, images = networks(AdvGan(), strength=0.2).double(), pictures(12).double()
    longest = threat.epsilon * (8 if threat.norm == "linf" else 1)
    with torch.no_grad():
        lengths = (threat.epsilon * net.generator(images)).flatten(1).norm(dim=1).clamp(max=longest)
    allowed = float(lengths.median())
    losses = []
    for beta in (0, 1):
        attack = AdvGan(beta=beta, c=allowed / longest)
        victim = Victim(Net().double().eval(), images, draws(12), drop=False)
        losses.append(attack.objective(step_of(net, images, threat), victim, Goal(zeros(12))).item())
    hinge = sum(max(float(length) - allowed, 0) for length in lengths) / 12
    assert losses[1] - losses[0] == pytest.approx(hinge, abs=1e-6)
    assert hinge > max(float(lengths.mean()) - allowed, 0) + 1e-3, "of the mean length it would be another"


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_the_generator_keeps_to_the_ball_by_itself(threat: ThreatModel) -> None:
    """However large its weights: inside the range and, where that leaves room, at the very edge of the ball."""
    net, images, grey = networks(AdvGan(), strength=1e4), pictures(20), torch.full((20, 1, 8, 8), 0.5)
    for some in (images, grey):
        with torch.no_grad():
            points = AdvGan().craft(net, some, Goal(zeros(20)), threat, draws(20))
        assert threat.contains(points, some).all()
        assert points.min() >= 0
        assert points.max() <= 1
    assert threat.distance(points, grey).min() > 0.99 * threat.epsilon


@pytest.mark.parametrize("epochs", range(2, 16))
def test_the_substitute_learns_before_each_piece_of_the_generators_passes(epochs: int) -> None:
    """Which are of nearly the same length, none of them empty, and one more than there are rounds."""
    for rounds in range(1, epochs):
        for mode, number in (("static", 0), ("dynamic", rounds)):
            attack = AdvGan(distillation=mode, epochs=epochs, rounds=rounds, distil_epochs=3)
            turns = [attack._round(epoch) for epoch in range(attack.training().epochs)]
            runs = [(turn, len(list(run))) for turn, run in itertools.groupby(turns)]
            assert runs[::2] == [(place, 3) for place in range(number + 1)]
            assert [turn for turn, _ in runs[1::2]] == [None] * (number + 1)
            pieces = [length for _, length in runs[1::2]]
            assert sum(pieces) == epochs
            assert max(pieces) - min(pieces) <= 1


def test_there_are_fewer_rounds_than_passes() -> None:
    with pytest.raises(InputError, match="rounds is 3; it must be below epochs, which is 3"):
        AdvGan(distillation="dynamic", rounds=3, epochs=3)
    AdvGan(distillation="static", rounds=3, epochs=3)


@pytest.mark.parametrize(("mode", "answers"), [("static", "logits"), ("dynamic", "logits"), ("dynamic", "labels")])
def test_a_black_box_only_answers_and_so_often(mode: str, answers: str, fit: Fit) -> None:
    """Each image is asked about once, and once more in each round; the model would have no gradient to give."""
    model, images = Blind().eval(), pictures(30)
    attack = AdvGan(distillation=mode, answers=answers, epochs=3, distil_epochs=2, rounds=2, batch_size=16)
    assert attack.fit_access == answers
    told = json.loads(fit(attack, model, images, model(images).argmax(1), LINF).note)
    rounds = 2 if mode == "dynamic" else 0
    assert (told["images"], told["held_out"]) == (30, 0)
    assert (told["forwards"], told["backwards"]) == (30 * (1 + rounds), 0)
    figures = [set(epoch["figures"]) for epoch in told["epochs"]]
    clean, made = "agreement on clean images", "agreement on adversarial images"
    between = 2 * [{clean, made}]
    rest = [set(), *between, set(), *between, set()] if rounds else [set()] * 3
    assert figures == [{clean}, {clean}, *rest]


@pytest.mark.parametrize("settings", [{}, {"distillation": "dynamic", "answers": "labels", "rounds": 1}], ids=str)
def test_it_learns_to_fool(settings: dict[str, Any], digits: tuple[nn.Module, Tensor, Tensor], fit: Fit) -> None:
    """More images that it did not learn on than any of 20 patterns of random signs, a black box too."""
    model, images, others = digits
    threat, generator = ThreatModel(norm="linf", epsilon=0.3), torch.Generator().manual_seed(4)
    attack = AdvGan(epochs=4, distil_epochs=3, batch_size=32, lr=0.003, **settings)
    attack = fit(attack, model, images, model(images).argmax(1), threat)
    answers = model(others).argmax(1)

    def fooled(points: Tensor) -> int:
        return int((model(points).argmax(1) != answers).sum())

    signs = [torch.randint(2, (1, 1, 8, 8), generator=generator) * 0.6 - 0.3 for _ in range(20)]
    points = attack.perturb(None, others, Goal(answers), threat, draws(200))  # type: ignore[arg-type]
    assert fooled(points) > 100 > max(fooled((others + sign).clamp(0, 1)) for sign in signs)


@pytest.mark.parametrize("mode", ["none", "static"])
def test_the_model_is_left_as_it_was(mode: str, fit: Fit) -> None:
    model, images = Net().train(), pictures(40)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(AdvGan(epochs=1, distil_epochs=1, distillation=mode), model, images, zeros(40), LINF)
    assert model.modes == {False}
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
