"""Where the energy of a perturbation is: in numbers, as a picture and as a line, and on the page."""

import base64
import io
import re

import numpy as np
import pytest
import scipy.fft
import torch
from PIL import Image
from torch import Tensor

from guard import Report, idct2
from guard.evaluation.result import Cell, Pictures
from guard.report.curves import HEIGHT, WIDTH
from guard.report.html import page
from guard.report.pictures import gallery
from guard.report.spectra import low, picture, radial, spectrum
from guard.spectrum import energy, low_frequency_energy, lowest

SIDES = [(8, 8), (28, 28), (32, 32), (24, 40)]


def wave(down: int, right: int, *sides: int) -> Tensor:
    """One basis function, of three channels, in images (1, 3, H, W)."""
    coefficients = torch.zeros(1, 3, *sides, dtype=torch.float64)
    coefficients[..., down, right] = 0.03
    return idct2(coefficients)


def checkerboard(side: int) -> Tensor:
    return 1 - 2.0 * (torch.arange(side)[:, None] + torch.arange(side)).remainder(2).double()[None, None]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (2, 1), (7, 7), (5, 6)])
def test_a_basis_function_lights_its_pixel_and_its_ring_alone(sides: tuple[int, int], place: tuple[int, int]) -> None:
    perturbation = wave(*place, *sides)
    (share,) = energy(perturbation)
    expected = torch.zeros(sides, dtype=torch.float64)
    expected[place] = 1
    torch.testing.assert_close(share, expected, rtol=0, atol=1e-12)
    assert np.array_equal(picture(share), expected[None].float().numpy())
    rings = radial(share)
    ring = round(min(sides) * np.hypot(place[0] / sides[0], place[1] / sides[1]))
    assert rings[ring] == pytest.approx(1)
    assert sum(rings) == pytest.approx(1)
    inside = place[0] < sides[0] // 4 and place[1] < sides[1] // 4
    assert low(share) == pytest.approx(float(inside))
    assert low_frequency_energy(perturbation).item() == pytest.approx(float(inside))


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 28, 28), (2, 1, 5, 18), (1, 3, 299, 299), (2, 1, 3, 1)])
def test_low_energy_is_what_scipy_finds_in_the_corner(shape: tuple[int, ...]) -> None:
    perturbations = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    perturbations += 0.5  # so that the corner is no sample of the whole
    squares = scipy.fft.dctn(perturbations.numpy(), axes=(-2, -1), norm="ortho") ** 2
    height, width = (-(-side // 4) for side in shape[-2:])
    expected = squares[..., :height, :width].sum((1, 2, 3)) / squares.sum((1, 2, 3))
    np.testing.assert_allclose(low_frequency_energy(perturbations), expected, rtol=1e-10)
    np.testing.assert_allclose([low(share) for share in energy(perturbations)], expected, rtol=1e-10)
    assert (lowest(shape[-2]), lowest(shape[-1])) == (height, width)


def test_a_shift_is_lowest_a_checkerboard_highest_and_noise_a_sixteenth() -> None:
    (shift,) = energy(torch.full((1, 1, 32, 32), 0.1, dtype=torch.float64))
    assert (radial(shift)[0], low(shift)) == (pytest.approx(1), pytest.approx(1))
    (board,) = energy(checkerboard(32))
    assert board.argmax() == 32 * 32 - 1
    assert low(board) < 1e-4
    assert np.argmax(radial(board)) == len(radial(board)) - 1
    noise = torch.randn(4000, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert low_frequency_energy(noise).mean().item() == pytest.approx(1 / 16, abs=5e-4)  # six standard errors


@pytest.mark.parametrize("sides", [*SIDES, (5, 18), (299, 299), (64, 64), (224, 160), (2, 2), (1, 1)])
def test_no_ring_is_empty(sides: tuple[int, int]) -> None:
    rings = radial(torch.full(sides, 1 / (sides[0] * sides[1])))
    assert min(rings) > 0
    assert sum(rings) == pytest.approx(1)
    assert len(rings) <= 46


def test_the_scale_is_logarithmic_over_three_decades() -> None:
    share = torch.tensor([[1, 10**-1.5], [10**-3, 0]], dtype=torch.float64)
    np.testing.assert_allclose(picture(share), [[[1, 0.5], [0, 0]]], atol=1e-6)
    np.testing.assert_allclose(picture(share / 7), picture(share), atol=1e-6)


@pytest.mark.parametrize("place", [(0, 0), (100, 31), (298, 298)])
def test_neighbours_share_a_pixel_of_a_photograph(place: tuple[int, int]) -> None:
    shown = picture(energy(wave(*place, 299, 299))[0])
    assert shown.shape == (1, 60, 60)
    assert np.argwhere(shown[0] == 1).tolist() == [[place[0] // 5, place[1] // 5]]
    assert (shown > 0).sum() == 1


def test_the_line_is_the_mean_of_what_was_moved() -> None:
    """Two waves and a perturbation that is zero: the area peaks at both rings, each half the energy."""
    waves = torch.cat([wave(0, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.float64), 5 * wave(6, 6, 8, 8)])
    shares = energy(waves)
    assert shares[1].isnan().all()
    found = spectrum(shares)
    assert found is not None
    assert (found.pictures, found.top, found.low) == (2, pytest.approx(0.5), pytest.approx(0.5))
    assert found.noise_low == pytest.approx(1 / 16)
    assert found.block.replace("\N{NO-BREAK SPACE}", " ") == "2 x 2 of 8 x 8"
    points = [tuple(map(float, pair.split(","))) for pair in found.area.split()]
    assert (points[0], points[-1]) == ((0, HEIGHT), (WIDTH, HEIGHT))
    heights = [HEIGHT - y for _, y in points[1:-1]]
    assert heights == [HEIGHT if ring in (1, 8) else 0 for ring in range(11)]  # 8.49 is the radius of 6, 6
    noise = [HEIGHT - float(pair.split(",")[1]) for pair in found.noise.removeprefix("M").split()]
    rings = np.bincount([int(np.hypot(i, j) + 0.5) for i in range(8) for j in range(8)])
    np.testing.assert_allclose(noise, rings / 64 / 0.5 * HEIGHT, atol=0.051)


def photographs(perturbations: Tensor) -> Pictures:
    clean = torch.full_like(perturbations, 0.5).float().numpy()
    names = ("cat",) * len(clean)
    moved = clean + perturbations.float().numpy()
    return Pictures(clean=clean, adversarial=moved, labels=names, clean_predictions=names, predictions=names)


def shown(report: Report, pictures: Pictures) -> str:
    """The section of pictures of a report with these alone."""
    cell = report.cells[0].model_copy(update={"low_frequency_energy": 0.118})
    text = page(report.model_copy(update={"cells": [cell], "pictures": {cell.key: pictures}}))
    return text[text.index('id="pictures"') : text.index('id="cost"')]


def test_every_triple_has_its_spectrum_on_the_page(report: Report) -> None:
    text = page(report)
    triples = sum(len(gallery(cell, report.pictures[cell.key]).triples) for cell in report.cells if _pictured(cell))
    assert text.count('alt="energy spectrum of perturbation') == text.count('alt="perturbation of image') == triples
    galleries = len(report.pictures)
    assert text.count("<polygon") == text.count("of the energy lies in the lowest") == galleries


def _pictured(cell: Cell) -> bool:
    return cell.status in ("VALID", "SUSPECT")


def test_the_page_says_how_low_in_words_and_leaves_out_what_was_not_moved(report: Report) -> None:
    waves = [wave(0, 1, 32, 32), wave(20, 9, 32, 32), 0 * wave(0, 1, 32, 32), wave(7, 7, 32, 32)]
    text = shown(report, photographs(torch.cat(waves)))
    captions = re.findall(r"energy spectrum of perturbation.*?<figcaption>(.*?)</figcaption>", text)
    assert captions == ["100.0 % low", "0.0 % low", "not moved", "100.0 % low"]
    said = " ".join(text.replace("&nbsp;", " ").replace("\N{NO-BREAK SPACE}", " ").split())
    assert "mean of 3 pictures" in said
    assert "<strong>66.7 %</strong> of the energy lies in the lowest 8 x 8 of 32 x 32 frequencies" in said
    assert "(white noise: 6.2 %); of all perturbations of the cell 11.8 %." in said
    assert "survive denoising" in said
    assert "nan" not in re.sub('src="[^"]*"', "", text).lower()


def test_a_cell_that_moved_nothing_has_blank_spectra_and_no_line(report: Report) -> None:
    still = photographs(torch.zeros(2, 3, 32, 32))
    text = shown(report, still)
    assert text.count("not moved") == 2
    assert "<polygon" not in text
    uri = gallery(report.cells[0], still).triples[0].spectrum
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))
    assert pixels.shape == (32, 32)
    assert not pixels.any()


def test_spectra_of_photographs_are_small(report: Report) -> None:
    noise = 0.05 * torch.randn(6, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    for triple in gallery(report.cells[0], photographs(noise)).triples:
        assert len(triple.spectrum) < len(triple.perturbation) / 5
