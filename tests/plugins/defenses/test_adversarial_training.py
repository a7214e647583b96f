"""Adversarial training: which adversary it crafts, and that training on it holds where plain training does not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from guard import Data, Defense, Goal, InputError, Registry, Rng, ThreatModel, Victim, held
from guard.defense import stack
from guard.progress import Progress
from guard.recipe import Training
from guard.training.batches import stream
from guard.training.fabric import fabric
from guard.training.loop import train

LINF = ThreatModel(norm="linf", epsilon=0.1)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


@pytest.fixture
def make(registry: Registry) -> Callable[..., Defense]:
    def create(**parameters: object) -> Defense:
        return registry.create("defense", {"name": "adversarial-training", **parameters})

    return create


def craft(
    defense: Defense,
    model: nn.Module,
    images: Tensor,
    targets: Tensor = LABELS,
    threat: ThreatModel = LINF,
    seed: int = 0,
) -> Tensor:
    return defense.adversary(model, images, targets, threat, Generator().manual_seed(seed))


def test_with_fgsm_it_is_the_signed_step(make: Callable[..., Defense], curved: nn.Module, images: Tensor) -> None:
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(curved(leaf), LABELS), leaf)
    expected = (images + 0.1 * gradient.sign()).clamp(0, 1)
    crafted = craft(make(attack="fgsm"), curved, images)
    torch.testing.assert_close(crafted, expected, rtol=0, atol=1e-15)
    assert not crafted.requires_grad


def test_one_step_of_training_is_the_step_by_hand(
    make: Callable[..., Defense], curved: nn.Module, images: Tensor
) -> None:
    """Two PGD steps from the start that was drawn, cross-entropy, SGD with Nesterov's momentum and weight decay."""
    place = stream(4, 0, 0)  # of the first epoch, and of the first update
    order = torch.randperm(8, generator=Generator().manual_seed(place))
    draws = Generator().manual_seed(stream(place, 0))  # the first process's
    clean, labels = images[order], LABELS[order]
    still = make(attack={"name": "pgd", "steps": 1, "step_size": 1e-300})
    point = still.adversary(curved, clean, labels, LINF, draws)
    assert not torch.equal(point, clean)
    for _ in range(2):
        leaf = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(curved(leaf), labels), leaf)
        point = torch.minimum(torch.maximum(point + 0.05 * gradient.sign(), clean - 0.1), clean + 0.1).clamp(0, 1)
    weights = list(curved.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(curved(point), labels), weights)
    expected = [
        weight.detach() - 0.3 * (1 + 0.9) * (gradient + 0.01 * weight.detach())
        for weight, gradient in zip(weights, gradients, strict=True)
    ]
    train(
        curved,
        stack(make(attack={"name": "pgd", "steps": 2, "step_size": 0.05})),
        Data.of(images, LABELS),
        LINF,
        Training(epochs=1, batch_size=8, validation=0, lr=0.3, weight_decay=0.01, schedule="constant"),
        num_classes=4,
        seed=4,
        fabric=fabric(Training(), torch.device("cpu")),
        progress=Progress(),
        what="training",
    )
    for weight, value in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), value, rtol=0, atol=1e-12)


def test_its_own_epsilon_replaces_the_threats(make: Callable[..., Defense], curved: nn.Module, images: Tensor) -> None:
    assert LINF.distance(craft(make(), curved, images), images).max() == pytest.approx(0.1)
    own = craft(make(epsilon="8/255"), curved, images)
    assert LINF.distance(own, images).max() == pytest.approx(8 / 255)
    assert torch.equal(own, craft(make(), curved, images, threat=ThreatModel(norm="linf", epsilon=8 / 255)))


@pytest.mark.usefixtures("global_generator_untouched")
def test_its_draws_follow_from_the_generator(make: Callable[..., Defense], curved: nn.Module, images: Tensor) -> None:
    assert torch.equal(craft(make(), curved, images, seed=1), craft(make(), curved, images, seed=1))
    assert not torch.equal(craft(make(), curved, images, seed=1), craft(make(), curved, images, seed=2))


def test_soft_targets_are_attacked_as_their_most_probable_class(
    make: Callable[..., Defense], curved: nn.Module, images: Tensor
) -> None:
    soft = 0.7 * F.one_hot(LABELS, 4) + 0.3 * F.one_hot((LABELS + 1) % 4, 4)
    assert torch.equal(craft(make(), curved, images, soft), craft(make(), curved, images))


def test_no_image_is_dropped_once_it_is_misclassified(
    make: Callable[..., Defense], curved: nn.Module, images: Tensor
) -> None:
    """The loss goes on rising after the label is lost: the last point, not the first that is wrong."""
    wrong = (curved(images).argmax(1) + 1) % 4
    crafted = craft(make(attack="bim"), curved, images, wrong)
    rise = F.cross_entropy(curved(crafted), wrong, reduction="none") - F.cross_entropy(
        curved(images), wrong, reduction="none"
    )
    assert (rise > 0).all()


def test_the_network_is_held_in_eval_mode_and_put_back(make: Callable[..., Defense], images: Tensor) -> None:
    modes = []

    class Watched(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            modes.append((self.training, self[1].training, self[2].weight.requires_grad))
            return super().forward(inputs)

    model = Watched(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 4)).double().train()
    model[1].bias.requires_grad_(False)
    before = model[1].running_mean.clone()
    craft(make(), model, images)
    assert set(modes) == {(False, False, False)}
    assert torch.equal(model[1].running_mean, before)
    assert model.training
    assert model[1].training
    assert model[2].weight.requires_grad
    assert not model[1].bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_does_not_fit_is_refused(make: Callable[..., Defense], curved: nn.Module, images: Tensor) -> None:
    for epsilon in (0, -0.1, "nan", float("nan")):
        with pytest.raises(InputError, match="epsilon"):
            make(epsilon=epsilon)
    with pytest.raises(InputError, match=r"'adversarial-training': epsilon is 8.*did you mean 8/255"):
        craft(make(epsilon=8), curved, images)
    with pytest.raises(InputError, match=r"no attack is named 'pdg'.*Did you mean 'pgd'"):
        make(attack="pdg")


def test_an_attack_of_another_norm_is_refused(make: Callable[..., Defense], curved: nn.Module, images: Tensor) -> None:
    class Boxed(type(make().attack)):  # type: ignore[misc]
        name = "boxed"
        norms = frozenset({"linf"})

    threat = ThreatModel(norm="l2", epsilon=0.1)
    with pytest.raises(InputError, match=r"attack 'boxed' of defense 'adversarial-training' cannot attack in l2.*linf"):
        craft(make(attack=Boxed()), curved, images, threat=threat)


def test_it_holds_on_digits_where_plain_training_does_not(registry: Registry, make: Callable[..., Defense]) -> None:
    """597 test images, linf 0.2, PGD-20: about 1 % without it, 53 % with it."""
    digits = load_digits()
    everything = Data.of(torch.tensor(digits.images / 16).float()[:, None], torch.tensor(digits.target))
    test, threat = everything[1200:], ThreatModel(norm="linf", epsilon=0.2)
    clean, robust = {}, {}
    for name, defense in {"none": registry.create("defense", "none"), "trained": make()}.items():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(512, 10)),
        )
        train(
            model,
            stack(defense),
            everything[:1200],
            threat,
            Training(epochs=5, batch_size=64),
            num_classes=10,
            seed=0,
            fabric=fabric(Training(), torch.device("cpu")),
            progress=Progress(),
            what="training",
        )
        rng = Rng(1, test.index, (1, 8, 8))
        with held(model):
            victim = Victim(model, test.images, rng.fold(0))
            attack = registry.create("attack", {"name": "pgd", "steps": 20})
            adversarial = attack.perturb(victim, test.images, Goal(test.labels), threat, rng)
            clean[name] = (model(test.images).argmax(1) == test.labels).double().mean()
            robust[name] = (model(adversarial).argmax(1) == test.labels).double().mean()
    assert min(clean.values()) > 0.9
    assert robust["none"] < 0.05
    assert robust["trained"] > robust["none"] + 0.4
