"""Feature style mixing: where it acts and when, what it mixes, and where its draws come from."""

import copy
from collections.abc import Callable

import pytest
import torch
from guard_plugins.defenses.feature_style_mixing import remixed
from torch import Generator, Tensor, nn

import guard
from guard import Data, Defense, InputError, Registry, ThreatModel
from guard.defense import stack
from guard.keys import key
from guard.progress import Progress
from guard.recipe import Training
from guard.training.fabric import fabric
from guard.training.loop import train

Make = Callable[..., Defense]
NAME = "feature-style-mixing"


def pictures(count: int = 16, channels: int = 3, side: int = 8) -> Tensor:
    return torch.rand(count, channels, side, side, generator=Generator().manual_seed(0))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4)]
        return nn.Sequential(*layers)


def seeded(model: nn.Module, images: Tensor, seed: int = 0) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(images)


def mixing(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if layer._forward_hooks]


@pytest.mark.parametrize("own", [0.0, 0.3, 1.0])
def test_statistics_are_mixed_and_the_pattern_stays(own: float) -> None:
    features = torch.randn(6, 5, 7, 4, generator=Generator().manual_seed(0), dtype=torch.float64) + 1
    partner = torch.tensor([1, 2, 3, 4, 5, 0])
    mixed = remixed(features, partner, torch.full((6, 1, 1, 1), own, dtype=torch.float64))
    deviation, mean = torch.std_mean(features, (2, 3), keepdim=True)
    goal = [own * each + (1 - own) * each[partner] for each in (deviation, mean)]
    torch.testing.assert_close(mixed, (features - mean) / deviation * goal[0] + goal[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed, features) == (own == 1)


def test_no_gradient_goes_through_the_statistics() -> None:
    features = torch.randn(2, 3, 4, 4, generator=Generator().manual_seed(0)).double().requires_grad_()
    remixed(features, torch.tensor([1, 0]), torch.zeros(2, 1, 1, 1).double()).sum().backward()
    deviation = features.detach().std((2, 3), keepdim=True)
    expected = (deviation.flip(0) / deviation).expand_as(features)
    torch.testing.assert_close(features.grad, expected, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("global_generator_untouched")
def test_in_eval_mode_the_network_is_as_it_was(make: Make) -> None:
    plain = network().eval()
    changed = make(NAME, share=1).modify(copy.deepcopy(plain), pictures())
    assert mixing(changed) == ["2"]
    assert not changed.training
    assert list(changed.state_dict()) == list(plain.state_dict())
    assert torch.equal(changed(pictures()), plain(pictures()))


@pytest.mark.usefixtures("global_generator_untouched")
def test_in_train_mode_it_mixes_by_torchs_generator(make: Make) -> None:
    plain = network()
    changed = make(NAME, share=1).modify(copy.deepcopy(plain), pictures())
    first = seeded(changed, pictures())
    assert torch.equal(first, seeded(changed, pictures()))
    assert torch.equal(first, seeded(copy.deepcopy(changed), pictures()))
    assert not torch.equal(first, seeded(changed, pictures(), seed=1))
    assert not torch.equal(first, plain(pictures()))


def test_the_share_of_images_is_mixed_by_beta_shares(make: Make) -> None:
    """Images of two flat values: what comes out is the share that stays."""
    images = torch.arange(4000).remainder(2).double().view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    found = {}
    for concentration in (0.1, 1.0):
        model = nn.Sequential(nn.AvgPool2d(2))
        make(NAME, share=0.6, concentration=concentration).modify(model, images)
        away = (seeded(model, images) - images[:, :, :2, :2])[:, 0, 0, 0].abs()
        found[concentration] = away[away > 0]
        assert (away > 0.5).double().mean() == pytest.approx(0.6 / 4, abs=0.03)  # half have a partner unlike them
    extreme = {key: ((value > 0.9) | (value < 0.1)).double().mean() for key, value in found.items()}
    assert extreme[1.0] == pytest.approx(0.2, abs=0.05)
    assert extreme[0.1] > 0.6


def test_usual_layers_of_known_networks(make: Make, registry: Registry) -> None:
    for name, expected in (("small-cnn", ["net.2", "net.5"]), ("resnet18-cifar", ["net.layer1", "net.layer2"])):
        source = registry.create("model", name)
        model = make(NAME).modify(guard.model(source.build(10, (3, 8, 8))), pictures(2))
        assert mixing(model) == expected


def test_layers_are_named_as_their_user_knows_them(make: Make) -> None:
    for name in ("0", "net.0"):
        assert mixing(make(NAME, layers=[name]).modify(guard.model(network()), pictures())) == ["net.0"]
    with pytest.raises(InputError, match=r"no layer 'conv' of this network answers with feature maps.*are 0, 1, 2$"):
        make(NAME, layers=["conv"]).modify(network(), pictures())
    with pytest.raises(InputError, match="no layer '3' of this network answers with feature maps"):
        make(NAME, layers=["3"]).modify(network(), pictures())
    with pytest.raises(
        InputError, match=r"finds neither layer1 nor a pooling in this network\. Name layers: .* are 0$"
    ):
        make(NAME).modify(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4)), pictures())


def test_what_is_cached_of_the_network_is_found_again(make: Make) -> None:
    first = make(NAME).modify(network(), pictures())
    network().register_forward_hook(lambda *_: None)
    assert key(make(NAME).modify(network(), pictures())) == key(first)
    assert key(make(NAME, share=1).modify(network(), pictures())) != key(first)


def test_it_stands_before_the_training_wherever_it_is_written(make: Make) -> None:
    for defenses in ([make(NAME)], [make("fgsm-rs"), make(NAME)]):
        left, right = stack(defenses).split()
        assert left.members == tuple(defenses)
        assert right.members == ()


def test_training_with_it_is_reproducible_and_goes_on_to_the_same_bits(
    make: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    images = (255 * pictures(24)).byte()
    data = Data.of(images, torch.arange(24) % 4)

    def trained(share: float, stop: bool = False, seed: int = 0) -> Tensor:
        defenses = stack([make(NAME, share=share), make("style-mixing")])
        training = Training.model_validate({"epochs": 3, "batch_size": 8, "validation": 0, "augmentation": ["cutmix"]})
        folder = tmp_path_factory.mktemp("training")

        def watch(course: object, weights: object) -> None:
            if stop and len(course.epochs) == 1:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

        def run(watch: Callable[..., None]) -> nn.Module:
            model = defenses.modify(network(), pictures())
            train(
                model,
                defenses,
                data,
                ThreatModel(norm="linf", epsilon=0.1),
                training,
                num_classes=4,
                seed=seed,
                fabric=fabric(training, torch.device("cpu")),
                progress=Progress(),
                what="training it",
                folder=folder,
                watch=watch,
            )
            return model

        if stop:
            with pytest.raises(KeyboardInterrupt):
                run(watch)
        model = run(lambda course, weights: None)
        return torch.cat([weight.detach().flatten() for weight in model.state_dict().values()])

    torch.manual_seed(1)
    first = trained(share=1)
    torch.manual_seed(2)
    assert torch.equal(first, trained(share=1))
    assert torch.equal(first, trained(share=1, stop=True))
    assert not torch.equal(first, trained(share=0))
    assert not torch.equal(first, trained(share=1, seed=1))


class Block(nn.Module):
    """A layer whose code is rebuilt to truncate its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.conv(images))


def test_it_goes_on_in_a_layer_that_a_later_defense_rebuilds(registry: Registry) -> None:
    model: nn.Module = nn.Sequential(Block(), nn.Flatten(), nn.Linear(144, 4))
    model = registry.create("defense", {"name": NAME, "layers": ["0"]}).modify(model, pictures())
    model = registry.create("defense", {"name": "truncated-relu", "cap": 0.1}).modify(model, pictures())
    assert mixing(model) == ["0"]
    assert any("truncated" in name for name, _ in model.named_modules())
    model.train()
    assert not torch.equal(seeded(model, pictures(), 0), seeded(model, pictures(), 1))
