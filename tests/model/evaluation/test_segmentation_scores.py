"""Scores of masks, against numbers by hand and against loops over pixels."""

import numpy as np
import pytest
import torch

from setokim.evaluation.segmentation_scores import SegmentationScore


def mask(*rows):
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


@pytest.fixture
def score():
    """Intersections over unions 1 / 3, 0 / 2, and 2 / 4."""
    score = SegmentationScore()
    score.add(mask("xx.", "..."), mask(".xx", "..."))
    score.add(mask("x.", ".."), mask("..", ".x"))
    score.add(mask("xxx."), mask(".xxx"))
    return score


def test_metrics_equal_numbers_by_hand(score):
    assert len(score) == 3
    assert score.ciou == pytest.approx((1 + 0 + 2) / (3 + 2 + 4))
    assert score.giou == pytest.approx((1 / 3 + 0 + 1 / 2) / 3)
    # 1 / 2 is at least 0.5.
    assert score.precision_at(0.5) == pytest.approx(1 / 3)
    assert score.precision_at(0.3) == pytest.approx(2 / 3)
    assert score.precision_at(1) == 0
    assert score.summary() == {
        "ciou": score.ciou,
        "giou": score.giou,
        **{f"p_at_{one}": score.precision_at(one / 100) for one in (50, 60, 70, 80, 90)},
    }


def test_precisions_at_the_published_thresholds():
    score = SegmentationScore()
    for length in range(1, 11):
        score.add(mask("x" * length + "." * (10 - length)), mask("x" * 10))
    # Of 0.1, 0.2, ... 1 six are at least 0.5.
    found = score.summary()
    names = [f"p_at_{one}" for one in (50, 60, 70, 80, 90)]
    assert [found[name] for name in names] == [0.6, 0.5, 0.4, 0.3, 0.2]


def test_two_empty_masks_agree_and_add_nothing_to_the_sums(score):
    before = score.ciou
    score.add(mask("..", ".."), mask("..", ".."))
    assert score.ciou == before
    assert score.giou == pytest.approx((1 / 3 + 0 + 1 / 2 + 1) / 4)
    assert score.precision_at(1) == 1 / 4
    # A predicted mask for an empty target is wrong, and so is the reverse.
    score.add(mask("x."), mask(".."))
    score.add(mask(".."), mask("x."))
    assert score.giou == pytest.approx((1 / 3 + 0 + 1 / 2 + 1) / 6)
    assert score.ciou == pytest.approx(3 / 11)


def test_empty_masks_alone_are_all_right():
    score = SegmentationScore()
    score.add(mask("."), mask("."))
    assert set(score.summary().values()) == {1.0}


def test_arrays_and_tensors_equal_a_loop_over_pixels():
    generator = np.random.default_rng(0)
    score, ratios, inside, around = SegmentationScore(), [], 0, 0
    for height, width in ((5, 7), (1, 9), (16, 16)):
        predicted, target = generator.random((2, height, width)) < [[[0.4]], [[0.6]]]
        score.add(torch.from_numpy(predicted), target)
        pixels = list(zip(predicted.flat, target.flat, strict=True))
        both = sum(a and b for a, b in pixels)
        either = sum(a or b for a, b in pixels)
        ratios.append(both / either)
        inside, around = inside + both, around + either
    assert score.ciou == pytest.approx(inside / around)
    assert score.giou == pytest.approx(np.mean(ratios))


def test_merged_parts_equal_one_score_of_all(score):
    left, right = SegmentationScore(), SegmentationScore()
    left.add(mask("xx.", "..."), mask(".xx", "..."))
    right.add(mask("x.", ".."), mask("..", ".x"))
    right.add(mask("xxx."), mask(".xxx"))
    left.merge(right)
    left.merge(SegmentationScore())
    assert len(left) == 3 and len(right) == 2
    assert left.summary() == score.summary()


def test_without_samples_there_is_no_metric():
    score = SegmentationScore()
    assert len(score) == 0
    for figure in (
        lambda: score.ciou,
        lambda: score.giou,
        lambda: score.precision_at(0.5),
        score.summary,
    ):
        with pytest.raises(ValueError, match="samples: expected at least one, got none"):
            figure()


@pytest.mark.parametrize(
    "predicted, target, error, message",
    [
        ([[True]], mask("x"), TypeError, "predicted: expected a tensor or an array, got list"),
        (mask("x").float(), mask("x"), TypeError, "predicted: expected dtype bool, got torch.fl"),
        (mask("x"), np.ones((1, 1), np.uint8), TypeError, "target: expected dtype bool, got uint8"),
        (mask("x")[None], mask("x"), ValueError, r"predicted: expected shape \(h, w\) with pixels"),
        (mask("xx"), mask("x"), ValueError, r"target: expected shape \(1, 2\), got \(1, 1\)"),
        (mask("x")[:0], mask("x"), ValueError, r"predicted: .* with pixels, got \(0, 1\)"),
    ],
)
def test_masks_that_do_not_fit_are_named(predicted, target, error, message):
    score = SegmentationScore()
    with pytest.raises(error, match=message):
        score.add(predicted, target)
    assert len(score) == 0


def test_other_arguments_that_do_not_fit_are_named(score):
    with pytest.raises(TypeError, match="other: expected a SegmentationScore, got dict"):
        score.merge({})
    with pytest.raises(ValueError, match=r"threshold: expected at most 1, got 50"):
        score.precision_at(50)
    with pytest.raises(ValueError, match=r"threshold: expected more than 0, got 0"):
        score.precision_at(0)
