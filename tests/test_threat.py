"""How an epsilon is read, written and refused, and what distance and contains say."""

import math

import pytest
import torch
from pydantic import ValidationError

from guard import ThreatModel
from guard.threat import amount


@pytest.mark.parametrize(
    ("written", "norm", "value"),
    [
        ("8/255", "linf", 8 / 255),
        (" 8 / 255 ", "linf", 8 / 255),
        (0.3, "linf", 0.3),
        ("0.3", "linf", 0.3),
        (".5", "l2", 0.5),
        (1, "linf", 1.0),
        ("1e-2", "l2", 0.01),
        ("127.5/255", "linf", 0.5),
        (12, "l1", 12.0),
        ("inf", "l2", math.inf),
        (math.inf, "l1", math.inf),
    ],
)
def test_epsilon_is_read_as_papers_write_it(written: object, norm: str, value: float) -> None:
    assert ThreatModel.model_validate({"norm": norm, "epsilon": written}).epsilon == value


@pytest.mark.parametrize(
    ("written", "norm", "message"),
    [
        ("8/0", "linf", "'8/0' divides by zero; write 8/255 or 0.3"),
        (True, "linf", "True is no number; write a number"),
        ("eight", "linf", "'eight' is no number; write 8/255 or 0.3"),
        ("8/255/2", "linf", "'8/255/2' is no number; write 8/255 or 0.3"),
        ("", "linf", "'' is no number; write 8/255 or 0.3"),
        ("nan", "linf", "'nan' is no number; write 8/255 or 0.3"),
        ("-8/255", "linf", "'-8/255' is no number; write 8/255 or 0.3"),
        (math.nan, "l2", "nan is not above 0; write 8/255 or 0.3"),
        (-0.1, "l2", "-0.1 is not above 0; write 8/255 or 0.3"),
        (0, "l2", "0 is not above 0; write 8/255 or 0.3"),
        ("0/255", "l2", "0 is not above 0; write 8/255 or 0.3"),
        (8, "linf", "epsilon is 8, more than the whole pixel range; did you mean 8/255?"),
        (1000, "linf", "epsilon is 1000, more than the whole pixel range; images live in [0, 1]"),
        ("inf", "linf", "epsilon is inf, more than the whole pixel range; images live in [0, 1]"),
    ],
)
def test_what_is_no_epsilon_is_refused_with_what_to_write(written: object, norm: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ThreatModel.model_validate({"norm": norm, "epsilon": written})
    assert [str(error["ctx"]["error"]) for error in caught.value.errors()] == [message]


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValidationError, match="'linf', 'l2' or 'l1'"):
        ThreatModel.model_validate({"norm": "l3", "epsilon": 0.1})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (0.3, "0.3"),
        (0.5, "0.5"),
        (0.5 / 255, "0.5/255"),
        (2.5 / 255, "2.5/255"),
        (1.0, "1"),
        (12.0, "12"),
        (0.001, "0.001"),
        (math.inf, "inf"),
    ],
)
def test_epsilon_is_written_as_papers_write_it(value: float, text: str) -> None:
    assert amount(value) == text


def test_distances_by_hand() -> None:
    images = torch.full((2, 1, 1, 2), 0.5)
    points = images + torch.tensor([[0.25, -0.125], [0.0, 0.0]]).view(2, 1, 1, 2)
    for norm, expected in (("linf", 0.25), ("l2", 0.078125**0.5), ("l1", 0.375)):
        distance = ThreatModel(norm=norm, epsilon=1).distance(points, images)
        assert distance.dtype == torch.float64
        assert distance.tolist() == pytest.approx([expected, 0])


@pytest.mark.parametrize(("norm", "slack"), [("linf", 1e-6), ("l2", 3e-6), ("l1", 3e-6)])
def test_contains_allows_a_rounding_and_nothing_more(norm: str, slack: float) -> None:
    threat = ThreatModel(norm=norm, epsilon=0.3)
    images = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    points = torch.tensor([0.3 + 0.9 * slack, 0.3 + 1.1 * slack], dtype=torch.float64).view(2, 1, 1, 1)
    assert threat.contains(points, images).tolist() == [True, False]


def test_a_threat_says_what_it_is() -> None:
    assert str(ThreatModel(norm="linf", epsilon=8 / 255)) == "linf 8/255"
