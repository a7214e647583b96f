"""The learned denoiser: what it minimises, what it is judged by, and what it takes out of an image."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guard_plugins.defenses.denoising_networks import DnCnn, UNet
from guard_plugins.defenses.learned_denoiser import LearnedDenoiser
from torch import Generator, Tensor, nn

import guard
from guard import Defense, InputError, Registry, Rng, Step, ThreatModel
from guard.rng import seeded

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

LINF = ThreatModel(norm="linf", epsilon=0.1)
MakeRng = Callable[..., Rng]


def drawn(make: Callable[[], nn.Module], scale: float = 0.1) -> nn.Module:
    """A module with weights and running statistics of which none is special."""
    generator = Generator().manual_seed(0)
    with seeded(0, torch.device("cpu")):
        module = make()
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            values = torch.rand(value.shape, generator=generator)
            value.copy_(values + 0.5 if "running_var" in name else scale * (2 * values - 1))
    return module


def pictures(count: int, side: int = 12, seed: int = 0) -> Tensor:
    """Images (N, 1, S, S) of two flat colors, with a straight edge between them."""
    generator = Generator().manual_seed(seed)
    low, high, angle, place = torch.rand(4, count, 1, 1, generator=generator)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    beyond = rows * (6.3 * angle).sin() + columns * (6.3 * angle).cos() > place - 0.5
    return torch.where(beyond, low, high)[:, None]


def step_of(module: nn.Module, images: Tensor, seed: int = 3) -> Step:
    labels = torch.zeros(len(images), dtype=torch.int64)
    return Step(module, images, images, labels, lambda: images.sum(), LINF, 0, 1, Generator().manual_seed(seed), {})


def test_the_network_is_convolutions_with_batch_norm_between_the_first_and_the_last(images: Tensor) -> None:
    module = drawn(lambda: DnCnn(3, depth=4, width=5)).double().eval()
    state: dict[str, Any] = dict(module.state_dict())
    values = F.conv2d(images, state["layers.0.weight"], state["layers.0.bias"], padding=1).relu()
    for number in (2, 5):
        values = F.conv2d(values, state[f"layers.{number}.weight"], padding=1)
        norm = {key: state[f"layers.{number + 1}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
        values = F.batch_norm(values, **norm).relu()
    expected = F.conv2d(values, state["layers.8.weight"], state["layers.8.bias"], padding=1)
    assert expected.abs().min() > 0
    torch.testing.assert_close(module(images), expected, rtol=0, atol=1e-12)
    assert len(state) == 2 + 2 * 6 + 2


@pytest.mark.parametrize("make", [lambda: DnCnn(3, 4, 5), lambda: UNet(3, 2)])
def test_before_it_learned_a_network_finds_nothing(make: Callable[[], nn.Module], images: Tensor) -> None:
    with seeded(0, torch.device("cpu")):
        module = make().double()
    assert not module(images).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_minimises_the_squared_error_of_the_noise(dtype: torch.dtype, images: Tensor) -> None:
    """Which is drawn by the step's generator alone, the same in each precision, and not clamped."""
    images = images.to(dtype)
    module = drawn(lambda: DnCnn(3, depth=3, width=4)).to(dtype)
    loss = LearnedDenoiser(sigma=0.2).objective(step_of(module, images), nn.Identity())
    noise = 0.2 * torch.randn(images.shape, generator=Generator().manual_seed(3)).to(dtype)
    assert not 0 <= (images + noise).min() <= (images + noise).max() <= 1
    expected = ((module(images + noise) - noise) ** 2).sum() / images.numel()
    torch.testing.assert_close(loss, expected, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)
    assert loss.requires_grad


def test_it_is_judged_by_the_decibels_that_each_image_gains(images: Tensor) -> None:
    """Of PSNR, whose peak is 1; what it leaves is in [0, 1]."""
    module = drawn(lambda: DnCnn(3, depth=3, width=4)).double().eval().requires_grad_(False)
    labels = torch.zeros(8, dtype=torch.int64)
    given = (module, nn.Identity(), images, labels, LINF, Generator().manual_seed(3))
    seen = LearnedDenoiser(sigma=0.3).seen(*given)
    assert list(seen) == ["dB gained"]
    noise = 0.3 * torch.randn(images.shape, generator=Generator().manual_seed(3)).double()
    noisy = images + noise
    left = (noisy - module(noisy)).clamp(0, 1)
    for image, before, after, gained in zip(images, noisy, left, seen["dB gained"], strict=True):
        psnr = [-10 * math.log10(float(((image - other) ** 2).mean())) for other in (before, after)]
        assert float(gained) == pytest.approx(psnr[1] - psnr[0], rel=1e-9)


def test_it_takes_the_noise_out_and_leaves_images_in_range(images: Tensor, make_rng: MakeRng) -> None:
    """The gradient passes where that is cut off: where white would be whiter, darker still makes a difference."""
    module = drawn(lambda: DnCnn(3, depth=3, width=4), scale=0.4).double().eval()
    defense, points = LearnedDenoiser().fitted(module), images.clone().requires_grad_()
    result = defense.preprocess(points, make_rng(images))
    whole = points - module(points)
    assert ((whole < 0) | (whole > 1)).any()
    torch.testing.assert_close(result, whole.clamp(0, 1), rtol=0, atol=1e-15)
    (gradient,) = torch.autograd.grad(result.sum(), points)
    (expected,) = torch.autograd.grad(whole.sum(), points)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("side", [8, 9, 33])
@pytest.mark.parametrize("name", ["learned-denoiser", "hgd"])
def test_an_image_gets_the_same_in_any_batch(name: str, side: int, registry: Registry, make_rng: MakeRng) -> None:
    defense: Any = registry.create("defense", {"name": name, "width": 2})
    fitted = defense.fitted(drawn(lambda: defense.unfitted(10, (3, side, side + 1))).double())
    images = torch.rand(5, 3, side, side + 1, generator=Generator().manual_seed(0)).double()
    result = fitted.preprocess(images, make_rng(images))
    assert result.shape == images.shape
    assert 0 <= result.min() <= result.max() <= 1
    assert (result != images).any()
    order = torch.tensor([4, 1, 2])
    part = fitted.preprocess(images[order], make_rng(images[order], index=order))
    torch.testing.assert_close(part, result[order], rtol=0, atol=1e-12)
    assert fitted.preprocess(images[:0], make_rng(images[:0])).shape == (0, 3, side, side + 1)


def test_it_removes_more_noise_than_any_blur(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From images that it has not met, whoever stands behind it: it learns once, without a label."""
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path))
    tiny: dict[str, Any] = {"sigma": "25/255", "depth": 4, "width": 12, "epochs": 3, "batch_size": 4}
    nets = [drawn(lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), scale) for scale in (0.1, 0.2)]
    labels = torch.arange(400) % 2
    guard.evaluate(
        nets, (pictures(4, seed=1), labels[:4]), attacks=["noise"], threat=LINF,
        defenses=[{"name": "learned-denoiser", **tiny}], train_data=(pictures(300), labels[:300]),
    )  # fmt: skip
    (kept,) = (tmp_path / "weights").glob("*.safetensors")
    learned = LearnedDenoiser(weights=str(kept), depth=4, width=12).loaded(2, (1, 12, 12))
    images = pictures(200, seed=2)
    noisy = images + 25 / 255 * torch.randn(images.shape, generator=Generator().manual_seed(9))
    rng = Rng(0, torch.arange(200), (1, 12, 12))

    @torch.no_grad()
    def gained(defense: Defense) -> float:
        left = (defense.preprocess(noisy, rng) - images).square().mean((1, 2, 3))
        return float(10 * ((noisy - images).square().mean((1, 2, 3)) / left).log10().mean())

    blurs = [Registry.load().create("defense", {"name": "gaussian-blur", "sigma": s / 10}) for s in range(4, 13, 2)]
    assert gained(learned) > max(gained(blur) for blur in blurs) + 1


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sigma": 0}, "0 is not above 0; write 8/255 or 0.3"),
        ({"sigma": "25/"}, "'25/' is no number; write 8/255 or 0.3"),
        ({"depth": 1}, "must be at least 2"),
    ],
)
def test_bad_parameters_are_one_line(given: dict[str, Any], text: str, registry: Registry) -> None:
    with pytest.raises(InputError) as caught:
        registry.create("defense", {"name": "learned-denoiser", **given})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sigma_is_written_as_papers_do(registry: Registry) -> None:
    assert registry.create("defense", {"name": "learned-denoiser", "sigma": "25/255"}) == LearnedDenoiser()
