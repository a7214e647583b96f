"""Shape bias, as Geirhos et al. define it."""

import math
import re

import pytest
import torch
from torch import Tensor

from guard import InputError
from guard.explaining.cues import ShapeBias, categories, shape_bias

SHAPES = torch.arange(8).repeat_interleave(8)
TEXTURES = torch.arange(8).repeat(8)  # every pair once; 8 of the 64 images have no conflict


def of(*classes: int) -> Tensor:
    return torch.tensor(classes)


def test_a_network_that_sees_one_cue_alone() -> None:
    by_shape, by_texture = shape_bias(SHAPES, SHAPES, TEXTURES), shape_bias(TEXTURES, SHAPES, TEXTURES)
    assert (by_shape.share, by_shape.shape_decisions, by_shape.texture_decisions, by_shape.images) == (1, 56, 0, 56)
    assert (by_texture.share, by_texture.shape_decisions, by_texture.texture_decisions) == (0, 0, 56)
    assert by_shape.shares == dict.fromkeys(range(8), 1.0)
    assert by_texture.shares == dict.fromkeys(range(8), 0.0)


def test_the_share_is_of_the_decisions_for_either() -> None:
    #         shape   shape   texture third  no conflict, right and wrong
    predicted, shapes, textures = of(0, 1, 2, 3, 4, 5), of(0, 1, 0, 0, 4, 4), of(1, 0, 2, 1, 4, 4)
    z = 1.959963984540054
    middle, half = (2 / 3 + z**2 / 6) / (1 + z**2 / 3), z * math.sqrt(2 / 9 / 3 + z**2 / 36) / (1 + z**2 / 3)
    found = shape_bias(predicted, shapes, textures)
    assert found == ShapeBias(
        share=2 / 3,
        interval=found.interval,
        shape_decisions=2,
        texture_decisions=1,
        images=4,
        shares={0: 1 / 2, 1: 1.0},
    )
    assert found.interval == pytest.approx((middle - half, middle + half), abs=1e-12)  # Wilson's


def test_the_order_of_images_says_nothing() -> None:
    predicted = torch.randint(8, (64,), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert shape_bias(predicted, SHAPES, TEXTURES) == shape_bias(predicted[order], SHAPES[order], TEXTURES[order])


def test_no_decision_for_either_is_no_share() -> None:
    neither = shape_bias(of(2, 2), of(0, 1), of(1, 0))
    assert (neither.share, neither.interval, neither.images, neither.shares) == (None, None, 2, {0: None, 1: None})
    nothing = shape_bias(of(0, 1), of(0, 1), of(0, 1))
    assert (nothing.share, nothing.interval, nothing.images, nothing.shares) == (None, None, 0, {})


def test_each_image_has_one_of_each() -> None:
    message = (
        "predictions, shapes and textures have the shapes (2,), (2,), (1,). Give each as classes (N,), one an image"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        shape_bias(of(0, 1), of(0, 1), of(0))
    with pytest.raises(InputError, match=re.escape("(1, 2), (1, 2), (1, 2)")):
        shape_bias(of(0, 1)[None], of(0, 1)[None], of(0, 1)[None])


def test_a_category_is_the_largest_mean_of_its_members() -> None:
    probabilities = torch.tensor([[0.2, 0.2, 0.2, 0.3, 0.1], [0.3, 0.3, 0.2, 0.15, 0.05], [0.0, 0.0, 0.0, 0.1, 0.9]])
    members = [[0, 1, 2], [3]]  # class 4 belongs to neither
    assert categories(probabilities, members).tolist() == [1, 0, 1]  # the sums would say 0, 0, 1
    assert categories(probabilities, [[3], [0, 1, 2]]).tolist() == [0, 1, 0]
    assert categories(probabilities, [[0], [1], [2], [3], [4]]).tolist() == probabilities.argmax(1).tolist()


@pytest.mark.parametrize("members", [[[0], []], [[0], [5]], [[0], [-1, 1]]])
def test_categories_without_members_are_refused(members: list[list[int]]) -> None:
    message = f"category 1 has the members {members[1]}; the network has 5 classes. Give each category at least one"
    with pytest.raises(InputError, match=re.escape(message)):
        categories(torch.full((1, 5), 0.2), members)


def test_logits_are_no_probabilities() -> None:
    with pytest.raises(InputError, match=re.escape("reach from -1 to 3: these are logits. Give logits.softmax(1)")):
        categories(torch.tensor([[3.0, -1.0]]), [[0], [1]])
