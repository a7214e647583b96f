"""Jumps: how far an attack moves what each layer answers."""

import pytest
import torch
from torch import Tensor, nn

import guard
from guard.errors import InputError
from guard.explaining.jumps import jumps
from guard.layers import shapes

pytestmark = pytest.mark.usefixtures("global_generator_untouched")


@pytest.fixture
def network() -> nn.Module:
    """In train mode, with layers whose answers depend on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        body = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten()
        return nn.Sequential(*body, nn.Linear(20, 4)).double().train()


@pytest.fixture
def attacked(images: Tensor) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=images.dtype)
    return (images + 0.1 * noise).clamp(0, 1)


def test_jumps_are_relative_distances_layer_by_layer(network: nn.Module, images: Tensor, attacked: Tensor) -> None:
    """Against a walk through the layers, image by image."""
    found = jumps(guard.model(network, mean=[0.5] * 3), images, attacked)
    assert network.training
    assert all(module.training for module in network.modules())
    assert list(found) == ["0", "1", "2", "3", "4", "5"]
    network.eval()
    with torch.no_grad():
        before, after = images - 0.5, attacked - 0.5
        for number, layer in enumerate(network):
            before, after = layer(before.clone()), layer(after.clone())
            for row in range(len(images)):
                distance = ((after[row] - before[row]) ** 2).sum().sqrt()
                expected = distance / (before[row] ** 2).sum().sqrt()
                assert found[str(number)][row].item() == pytest.approx(expected.item(), rel=1e-9)


def test_layers_are_those_of_the_victim_in_their_order(network: nn.Module, images: Tensor, attacked: Tensor) -> None:
    assert list(jumps(network, images, attacked)) == list(shapes(network.eval(), images))


def test_a_linear_network_jumps_as_far_as_its_images() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8, bias=False), nn.Linear(8, 3, bias=False))
    clean = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([1.0, 1.5, 2.0, 0.5, 0.0])
    found = jumps(model, clean, clean * factors.view(-1, 1, 1, 1))
    for values in found.values():
        torch.testing.assert_close(values, (factors - 1).abs())


def test_an_image_jumps_alike_in_any_batch(network: nn.Module, images: Tensor, attacked: Tensor) -> None:
    whole = jumps(network, images, attacked)
    alone = [jumps(network, images[i : i + 1], attacked[i : i + 1]) for i in range(len(images))]
    for name, values in whole.items():
        assert values.shape == (8,)
        torch.testing.assert_close(torch.cat([each[name] for each in alone]), values, rtol=1e-12, atol=0)


def test_from_silence_any_answer_is_infinitely_far() -> None:
    model = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 4, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[1].weight.fill_(-1)
        model[1].weight[:, 0] = 1
    clean = torch.tensor([0.0, 1, 0, 0]).view(1, 1, 2, 2).repeat(3, 1, 1, 1)
    adversarial = torch.tensor([[0.0, 1, 0, 0], [0, 1, 0.5, 0], [1, 0, 0, 0]]).view(3, 1, 2, 2)
    assert jumps(model, clean, adversarial)["2"].tolist() == [0, 0, float("inf")]


def test_sets_that_do_not_belong_together_are_refused(network: nn.Module, images: Tensor) -> None:
    for clean, adversarial in ((images, images[:3]), (images, images[:, :, :2]), (images[:0], images[:0])):
        with pytest.raises(InputError, match=r"^clean images have shape \(.*\. Give as many of both, at least one$"):
            jumps(network, clean, adversarial)


def test_what_has_no_row_for_each_image_is_left_out(images: Tensor, attacked: Tensor) -> None:
    class Offset(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.new_ones(1, 4)

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.offset = nn.utils.skip_init(nn.Linear, 48, 4).double(), Offset()
            nn.init.ones_(self.out.weight)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.out(images.flatten(1))
            return logits + self.offset(logits)

    assert list(jumps(Shifted(), images[:1], attacked[:1])) == ["out"]
