"""How an adversary meets the network that is trained: BatchNorm, dropout, frozen weights, draws, any attack."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from guard import Defense, InputError, ThreatModel

Make = Callable[..., Defense]
CRAFTING = ["adversarial-training", "trades", "mart", "fgsm-rs", "n-fgsm", "gradalign"]
WITH_ATTACK = ["adversarial-training", "trades", "mart", "gradalign"]


def craft(defense: Defense, model: nn.Module, images: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
    threat = ThreatModel(norm="linf", epsilon=0.1)
    return defense.adversary(model, images, labels, threat, Generator().manual_seed(seed))


class Watched(nn.Module):
    """Notes in which mode it is asked, and of how many images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.drop, self.seen = net, nn.Dropout(0.5), list[tuple[bool, bool, bool]]()

    def forward(self, images: Tensor) -> Tensor:
        norm, linear = self.net[2], self.net[4]  # type: ignore[index]
        self.seen.append((norm.training, self.drop.training, linear.weight.requires_grad))
        return self.drop(self.net(images))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["eval", "train", None])
@pytest.mark.parametrize("name", CRAFTING)
@pytest.mark.usefixtures("global_generator_untouched")
def test_batch_norm_is_in_the_mode_asked_for_and_all_is_put_back(
    name: str, mode: str | None, make: Make, network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    model = Watched(network)
    model.net[1].bias.requires_grad_(False)  # type: ignore[index]
    before = copy.deepcopy(model.state_dict())
    craft(make(name, **({} if mode is None else {"batch_norm": mode})), model, images, labels)
    published = "train" if name in ("fgsm-rs", "n-fgsm", "gradalign") else "eval"
    assert set(model.seen) == {((mode or published) == "train", False, False)}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(module.training for module in model.modules())
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["net.1.bias"]
    assert all(weight.grad is None for weight in model.parameters())


def test_a_layer_that_was_in_eval_mode_stays_there(
    make: Make, network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    network[2].eval()  # type: ignore[index]
    attack = {"name": "bim", "steps": 2}
    crafted = [
        craft(make("trades", attack=attack, batch_norm=mode), network, images, labels) for mode in ("eval", "train")
    ]
    assert torch.equal(*crafted)
    assert not network[2].training  # type: ignore[index]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_gradient_is_that_of_the_mode(
    mode: str, make: Make, ascent: Callable[..., Tensor], network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    gradient = {}
    for each in ("eval", "train"):
        model = copy.deepcopy(network).train(each == "train")
        gradient[each] = ascent(model, images, lambda logits: F.cross_entropy(logits, labels)).sign()
    assert not torch.equal(gradient["eval"], gradient["train"])
    crafted = craft(make("adversarial-training", attack="fgsm", batch_norm=mode), network, images, labels)
    torch.testing.assert_close(crafted, (images + 0.1 * gradient[mode]).clamp(0, 1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("attack", ["tap", "low-frequency", "mi-fgsm", "apgd", {"name": "pgd", "restarts": 2}], ids=str)
@pytest.mark.parametrize("name", WITH_ATTACK)
def test_any_gradient_attack_is_an_adversary(
    name: str,
    attack: object,
    mode: str,
    make: Make,
    update: Callable[..., object],
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    linf: ThreatModel,
) -> None:
    defense = make(name, attack=attack, batch_norm=mode)
    before = copy.deepcopy(network.state_dict())
    crafted = craft(defense, network, images, labels)
    assert linf.contains(crafted, images).all()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())  # whatever it asked
    clean, moved = (F.cross_entropy(copy.deepcopy(network).eval()(each), labels) for each in (images, crafted))
    assert moved > clean
    update(defense, network, images, labels, linf)
    assert not torch.equal(network.state_dict()["1.weight"], before["1.weight"])
    assert all(value.isfinite().all() for value in network.state_dict().values())


@pytest.mark.parametrize("name", CRAFTING)
def test_draws_follow_from_the_generator_alone(
    name: str, make: Make, network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    one, again, other = (craft(make(name), network, images, labels, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert torch.equal(one, other) == (name == "gradalign")  # FGSM draws nothing


@pytest.mark.parametrize("name", CRAFTING)
def test_soft_targets_are_attacked_as_their_most_probable_class(
    name: str, make: Make, network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    soft = 0.7 * F.one_hot(labels, 4) + 0.3 * F.one_hot((labels + 1) % 4, 4)
    assert torch.equal(craft(make(name), network, images, soft), craft(make(name), network, images, labels))


@pytest.mark.parametrize("name", [*CRAFTING, "free"])
def test_its_own_epsilon_replaces_the_threats(
    name: str, make: Make, update: Callable[..., object], network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    reached = []
    for epsilon, threat in ((0.05, 0.1), (None, 0.05)):
        step = update(
            make(name, epsilon=epsilon),
            copy.deepcopy(network),
            images,
            labels,
            ThreatModel(norm="linf", epsilon=threat),
        )
        reached.append((step.adversarial - images).abs().max().item())  # type: ignore[attr-defined]
    assert reached[0] == pytest.approx(reached[1])
    assert reached[0] <= 0.05 * (3 if name == "n-fgsm" else 1) + 1e-12


def test_bad_modes_are_refused(make: Make) -> None:
    with pytest.raises(InputError, match="batch_norm of defense 'trades' is 'frozen'; it must be 'eval' or 'train'"):
        make("trades", batch_norm="frozen")
    with pytest.raises(InputError, match="defense 'fgsm-rs' has no parameter 'attack'"):
        make("fgsm-rs", attack="pgd")
