"""What a claim's page shows of figures that are no shares, of charts, and of images with two cues."""

import json
import re

import numpy as np
import pytest

from guard.claims.verdict import Chart, Comparison, CuePicture, Figure, Verdict, compared, corrected
from guard.report.claim import page
from guard.report.claim_chart import HEIGHT, WIDTH, drawn
from guard.report.claim_words import difference, said, shown


def jump(seed: int = 0) -> Comparison:
    low, high = np.linspace(0.1, 0.2, 41), np.linspace(0.3, 0.5, 41)
    return compared(0, seed, Figure(name="a"), Figure(name="b"), 0.5, (low, high), "jump", "conv1")


def verdict(**keys: object) -> Verdict:
    base = {"claim": "X.", "verdict": "supported", "images": 41, "config": {}, "versions": {}}
    return Verdict.model_validate(base | {"comparisons": tuple(corrected([jump()]))} | keys)


def test_figures_that_are_no_shares_are_written_as_they_are() -> None:
    item = jump()
    # ranks 15 and 27 of 41: binomial, P(X < 14) = 0.0138, P(X <= 14) = 0.0298
    assert shown(item, item.lower) == "0.15 [0.133, 0.168]"
    assert shown(item, item.higher) == "0.4 [0.365, 0.435]"
    assert difference(item) == "+0.25"
    assert said([item]) == "1: jump of layer conv1: a is below b, by at least 50 %"
    assert corrected([item])[0].holds  # 0.25 is more than half of 0.4
    narrow = item.model_copy(update={"by": 0.7})
    assert not corrected([narrow])[0].holds


def test_shares_are_percent() -> None:
    flags = np.arange(100) < 30
    item = compared(0, 0, Figure(name="a"), Figure(name="b"), None, (flags, ~flags), "shape-bias")
    assert shown(item, item.lower).startswith("30.0 [")
    assert difference(item) == "+40.0"
    assert said([item]) == "1: shape bias: a is below b"


def test_images_without_a_figure_count_on_neither_side() -> None:
    low, high = np.array([0.0, 1.0, np.nan, np.nan]), np.array([1.0, np.nan, 1.0, np.nan])
    item = compared(0, 0, Figure(name="a"), Figure(name="b"), None, (low, high), "shape-bias")
    assert (item.lower.value, item.higher.value) == (0.5, 1.0)
    assert item.p_value == 1  # one image has both


def test_a_chart_is_drawn_to_scale() -> None:
    chart = Chart(title="t", places=("x", "y"), lines={"one": (0.0, 1.0), "two": (0.5, float("inf"))}, share=True)
    found = drawn(chart)
    (_, one, marks), (_, two, _) = found.lines
    assert one == f"{WIDTH / 4:g},{HEIGHT} {WIDTH * 3 / 4:g},0"
    assert two == f"{WIDTH / 4:g},{HEIGHT / 2:g}"  # what is infinite is left out
    assert marks[1][2] == "y: 100, one"
    assert [tick.text for tick in found.columns] == ["x", "y"]
    other = drawn(Chart(title="t", places=("x",), lines={"one": (0.37,)}, share=False))
    assert [tick.text for tick in other.rows] == ["0", "0.1", "0.2", "0.3", "0.4"]


def test_the_page_has_the_chart_and_the_images_and_the_json_only_the_chart() -> None:
    chart = Chart(title="by layer", places=("conv1", "fc"), lines={"a": (0.1, 0.2), "b": (0.3, 0.4)}, share=False)
    images = tuple(np.full((3, 8, 8), level, dtype=np.float32) for level in (0.2, 0.5, 0.8))
    picture = CuePicture(classes=("cat", "dog"), images=images, predictions=("cat", "cow", "dog"))
    found = verdict(charts=(chart,), pictures=(picture,))
    html = page(found)
    assert html.count("<polyline") == 2
    assert html.count("data:image/png") == 3
    text = " ".join(re.sub(r"<[^>]*>", " ", html).split())
    assert "shape: cat" in text
    assert "neither: cow" in text
    assert "texture: dog" in text
    assert "by layer" in text.lower()
    kept = json.loads(found.model_dump_json())
    assert kept["charts"][0]["places"] == ["conv1", "fc"]
    assert "pictures" not in kept
    bare = page(verdict())
    assert "<polyline" not in bare
    assert "data:image/png" not in bare


@pytest.mark.parametrize(("value", "end"), [(0.2, 100.0), (0.05, 25.0)])
def test_the_scale_of_a_line_ends_at_its_largest_figure(value: float, end: float) -> None:
    both = (np.array([value]), np.array([0.2]))
    item = compared(0, 0, Figure(name="a"), Figure(name="b"), None, both, "seconds")
    assert f'class="low" style="left:{end}%"' in page(verdict(comparisons=(item,)))
