"""What holds of every filter in front of the network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard import Data, Defense, Goal, Registry, Rng, ThreatModel, Victim

Make = Callable[..., Defense]
Spec = dict[str, Any]

SPECS: list[Spec] = [
    {"name": "bilateral"},
    {"name": "nl-means", "search_size": 7},
    {"name": "jpeg"},
    {"name": "jpeg", "codec": "differentiable"},
    {"name": "dct-low-pass"},
    {"name": "tv-minimization", "steps": 20},
    {"name": "resize-pad", "low": 0.6},
]


@pytest.mark.usefixtures("global_generator_untouched")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_an_image_gets_the_same_in_any_batch(
    make: Make, make_rng: Callable[..., Rng], spec: Spec, channels: int, dtype: torch.dtype
) -> None:
    values = torch.rand(5, channels, 9, 8, generator=torch.Generator().manual_seed(0))
    images, defense = (values * 1.4 - 0.2).clamp(0, 1).to(dtype), make(**spec)
    result = defense.preprocess(images, make_rng(images))
    assert (result.shape, result.dtype) == (images.shape, dtype)
    assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(defense.preprocess(images, make_rng(images)), result)
    order = torch.tensor([4, 1, 2])
    part = defense.preprocess(images[order], make_rng(images[order], index=order))
    torch.testing.assert_close(part, result[order], rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)
    for moment in (defense.preprocess, defense.surrogate):
        assert moment(images[:0], make_rng(images[:0])).shape == (0, *images.shape[1:])
    other = defense.preprocess(images, make_rng(images, seed=1))
    assert torch.equal(other, result) is not defense.randomized


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gradients_are_true_where_it_says_so(
    make: Make, make_rng: Callable[..., Rng], spec: Spec, channels: int
) -> None:
    values = torch.rand(1, channels, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images = (0.3 + 0.4 * values).requires_grad_()
    defense = make(**spec | ({"search_size": 3} if spec["name"] == "nl-means" else {}))

    def surrogate(points: Tensor) -> Tensor:
        return defense.surrogate(points, make_rng(points))

    assert torch.autograd.gradcheck(surrogate, images)
    processed = defense.preprocess(images, make_rng(images))
    assert torch.equal(processed, surrogate(images)) is defense.differentiable


def psnr(images: Tensor, clean: Tensor) -> float:
    return -10 * float((images - clean).square().mean().log10())


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_on_flat_areas_is_taken_away_and_edges_stay(
    make: Make, make_rng: Callable[..., Rng], channels: int
) -> None:
    clean = torch.rand(4, channels, 4, 4, generator=torch.Generator().manual_seed(2)).repeat_interleave(8, 2)
    clean = (0.15 + 0.7 * clean).repeat_interleave(8, 3)
    noisy = clean + 0.06 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))

    def gained(name: str, **parameters: float) -> float:
        """In decibels."""
        defense = make(name, **parameters)
        return psnr(defense.preprocess(noisy, make_rng(noisy)), clean) - psnr(noisy, clean)

    blur, low_pass = gained("gaussian-blur"), gained("dct-low-pass")
    bilateral, non_local = gained("bilateral", sigma_color=0.3), gained("nl-means", strength=0.15)
    variation, drawn = gained("tv-minimization", drop_rate=0, weight=0.15), gained("tv-minimization", weight=0.1)
    assert low_pass > 0
    assert min(bilateral, non_local, variation, drawn) > max(blur, 0) + 0.5
    assert variation > drawn
    if channels == 1:  # the edges lie on the codec's blocks, but not on those of its chroma
        assert gained("jpeg", quality=20) > 1
    assert abs(gained("jpeg", quality=100)) < 1.5


@pytest.fixture
def digits(digits_network: tuple[nn.Module, Data, Data]) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier of the digits, and 150 test images with their labels."""
    model, _, test = digits_network
    return model, test.images[:150], test.labels[:150]


@pytest.mark.parametrize("spec", [{"name": "jpeg", "quality": 10}, {"name": "dct-low-pass"}], ids=str)
def test_an_attack_through_the_defense_breaks_more_than_one_around_it(
    registry: Registry,
    make: Make,
    make_rng: Callable[..., Rng],
    make_victim: Callable[..., Victim],
    digits: tuple[nn.Module, Tensor, Tensor],
    spec: Spec,
) -> None:
    (model, images, labels), defense = digits, make(**spec)
    goal, threat = Goal(labels), ThreatModel(norm="linf", epsilon=0.1)
    pgd = registry.create("attack", {"name": "pgd", "steps": 10})

    def accuracy(points: Tensor) -> float:
        found = model(defense.preprocess(points, make_rng(points))).argmax(1)
        return float((found == labels).double().mean())

    around, through = (
        pgd.perturb(make_victim(model, images, drop=False, stages=stages), images, goal, threat, make_rng(images))
        for stages in ((), (defense,))
    )
    assert accuracy(through) < accuracy(around) - 0.1 < accuracy(images) - 0.3
