"""Conflicts: the objective against a walk through the network, image by image, and what it leads to."""

import re

import pytest
import torch
from torch import Tensor, nn

import guard
from guard import InputError, Progress
from guard.explaining.conflicts import conflicts

pytestmark = pytest.mark.usefixtures("global_generator_untouched")


@pytest.fixture
def network() -> nn.Module:
    """Resolutions 12, 6 and 3 by way of a padding to 14, in float64 and train mode; some layers depend on that."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        second = nn.ZeroPad2d(1), nn.Conv2d(4, 5, 4, stride=2), nn.Dropout(0.5), nn.Softplus()
        last = nn.Conv2d(5, 6, 3, stride=2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
        return nn.Sequential(*first, *second, *last).double().train()


def photographs(seed: int, count: int = 5, side: int = 12) -> Tensor:
    """Smooth images, each with a contrast of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    contrast = torch.linspace(0.2, 1, count, dtype=torch.float64).view(-1, 1, 1, 1)
    return nn.functional.interpolate(coarse * contrast, (side, side), mode="bicubic").clamp(0, 1)


SHAPES, TEXTURES = photographs(0), photographs(1)


def statistics(answer: Tensor) -> Tensor:
    """Of one image (C, H, W)."""
    pixels = answer.flatten(1)
    centered = pixels - pixels.mean(1, keepdim=True)
    return torch.cat([pixels.mean(1), ((centered**2).mean(1) + 1e-5).sqrt()])


def terms(network: nn.Module, image: Tensor, shape: Tensor, texture: Tensor) -> tuple[Tensor, Tensor]:
    """The texture's and the shape's part of the objective, straight from the definition: layers "2" and "6"."""
    network.eval()
    answers = [[x, network[:3](x[None].clone())[0], network[:7](x[None].clone())[0]] for x in (image, shape, texture)]
    parts = [
        ((statistics(own) - statistics(wanted)) ** 2).sum() / (statistics(wanted) ** 2).sum()
        for own, wanted in zip(answers[0], answers[2], strict=True)
    ]
    content = ((answers[0][2] - answers[1][2]) ** 2).sum() / (answers[1][2] ** 2).sum()
    return sum(parts, torch.tensor(0.0)) / 3, content


def total(network: nn.Module, images: Tensor) -> list[tuple[float, float]]:
    """Both parts for each image."""
    found = [terms(network, *trio) for trio in zip(images, SHAPES, TEXTURES, strict=True)]
    return [(texture.item(), content.item()) for texture, content in found]


def test_the_first_steps_are_adams_on_the_objective_as_it_is_defined(network: nn.Module) -> None:
    """Against Adam by hand, whose gradient is that of the walk."""
    found = conflicts(guard.model(network), SHAPES, TEXTURES, steps=3, step_size=0.01, weight=0.7)
    for row in range(len(SHAPES)):
        point, first, second = SHAPES[row].clone(), torch.zeros(()), torch.zeros(())
        for step in (1, 2, 3):
            point.requires_grad_()
            texture, content = terms(network, point, SHAPES[row], TEXTURES[row])
            (gradient,) = torch.autograd.grad(texture + 0.7 * content, point)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            move = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            point = (point.detach() - 0.01 * move).clamp(0, 1)
        torch.testing.assert_close(found[row], point, rtol=0, atol=1e-9)


def test_texture_comes_and_the_weight_keeps_the_shapes(network: nn.Module) -> None:
    before = total(network, SHAPES)
    free, tied = (total(network, conflicts(network, SHAPES, TEXTURES, weight=weight)) for weight in (0.0, 10.0))
    for (texture, _), (freely, strayed), (bound, kept) in zip(before, free, tied, strict=True):
        assert freely < 0.01 * texture
        assert freely < bound < texture
        assert kept < 0.2 * strayed


def test_an_image_is_made_alike_in_any_batch_and_order(network: nn.Module) -> None:
    whole = conflicts(network, SHAPES, TEXTURES, steps=20)
    for size in (1, 2):
        torch.testing.assert_close(
            conflicts(network, SHAPES, TEXTURES, steps=20, batch_size=size), whole, rtol=0, atol=1e-9
        )
    backwards = conflicts(network, SHAPES.flip(0), TEXTURES.flip(0), steps=20)
    torch.testing.assert_close(backwards.flip(0), whole, rtol=0, atol=1e-9)


def test_images_stay_images_and_inputs_and_model_as_they_were(network: nn.Module) -> None:
    network[1].eval()  # one layer's own mode
    state = {name: value.clone() for name, value in network.state_dict().items()}
    shapes, textures = SHAPES.clone(), TEXTURES.clone()
    with torch.no_grad():
        made = conflicts(network, shapes, textures, steps=5, step_size=0.5)
    assert (made.dtype, made.shape, made.requires_grad) == (torch.float64, SHAPES.shape, False)
    assert made.min() == 0  # the step is large enough to leave the range
    assert made.max() == 1
    assert torch.equal(shapes, SHAPES)
    assert torch.equal(textures, TEXTURES)
    assert [module.training for module in network] == [place != 1 for place in range(len(network))]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name  # a BatchNorm in train mode would have counted


def test_its_own_texture_leaves_an_image_as_it_is(network: nn.Module) -> None:
    torch.testing.assert_close(conflicts(network, SHAPES, SHAPES, steps=5), SHAPES, rtol=0, atol=1e-12)


def test_constant_images_and_layers_that_answer_with_zeros_give_numbers() -> None:
    with torch.random.fork_rng(devices=[]):
        linear = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(400, 2)).double()
    gray, black = torch.full_like(SHAPES, 0.5), torch.zeros_like(SHAPES)
    for shapes, textures in ((gray, TEXTURES), (SHAPES, gray), (black, TEXTURES), (SHAPES, black)):
        made = conflicts(linear, shapes, textures, steps=5)
        assert made.isfinite().all()
        assert not torch.equal(made, shapes)


def test_progress_counts_the_steps_of_images(network: nn.Module) -> None:
    told: list[object] = []

    class Heard(Progress):
        def start(self, what: str, total: int) -> None:
            told.append(total)

        def advance(self, units: int, what: str = "") -> None:
            told.append(units)

        def finish(self) -> None:
            told.append("end")

    conflicts(network, SHAPES, TEXTURES, steps=2, batch_size=3, progress=Heard())
    assert told == [10, 3, 3, 2, 2, "end"]


def test_what_cannot_be_done_is_said(network: nn.Module) -> None:
    with pytest.raises(InputError, match=re.escape("shapes are (5, 3, 12, 12), textures (4, 3, 12, 12). Give as many")):
        conflicts(network, SHAPES, TEXTURES[:4])
    with pytest.raises(InputError, match="at least one"):
        conflicts(network, SHAPES[:0], TEXTURES[:0])
    with torch.random.fork_rng(devices=[]):
        flat = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).double()
    with pytest.raises(InputError, match="the model has no layer that answers in channels x height x width"):
        conflicts(flat, SHAPES, TEXTURES)
