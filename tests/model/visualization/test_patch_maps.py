import numpy as np
import pytest

from helpers.drawn_clusters import clusters_by_hand
from setokim.visualization.patch_maps import (
    draw_mask,
    draw_scope,
    draw_values,
    outline_colour,
    scope_after,
)

SIZE = (200, 100)


def brightness(image):
    """Mean grey of the left and of the right half, away from the seeds in their middle."""
    grey = np.asarray(image.convert("L")).astype(float)
    return grey[:25, :100].mean(), grey[:25, 100:].mean()


@pytest.fixture
def halves():
    return clusters_by_hand([[0, 1]], [(0, 0), (0, 1)])


def test_the_scope_starts_at_one_and_ends_as_the_residual(halves):
    assert scope_after(halves, 0).tolist() == [[1, 1]]
    assert scope_after(halves, 1).tolist() == [[0, 1]]
    assert np.array_equal(scope_after(halves, 2), halves.masks[-1])


def test_a_mask_lights_its_patches(halves):
    left, right = brightness(draw_mask(halves, 1, SIZE))
    assert right == 128 and left < 25
    left, right = brightness(draw_mask(halves, 2, SIZE))
    assert left < 25 and right < 25, "the residual is empty"


def test_the_scope_goes_dark_step_by_step(halves):
    assert brightness(draw_scope(halves, 0, SIZE)) == (128, 128)
    left, right = brightness(draw_scope(halves, 1, SIZE))
    assert left < 40 and right == pytest.approx(128, abs=5)
    left, right = brightness(draw_scope(halves, 2, SIZE))
    assert left < 40 and right < 40


def test_several_steps_show_all_their_seeds():
    strip = clusters_by_hand([[0, 1, 2, 3]], [(0, 0), (0, 1), (0, 2), (0, 3)])
    one, two = (np.asarray(draw_scope(strip, 3, SIZE, shown)).astype(int) for shown in (1, 2))
    changed = np.flatnonzero(np.abs(one - two).max((0, 2)))
    assert changed.min() in (49, 50), "the outline of the second cluster"
    assert 75 < changed.max() <= 100, "and its seed"
    more = draw_scope(strip, 2, SIZE, 99)
    assert np.array_equal(np.asarray(more), np.asarray(draw_scope(strip, 2, SIZE, 2)))


@pytest.mark.parametrize("label", range(0, 64, 7))
def test_outlines_can_be_seen_on_black(label):
    linear = (np.array(outline_colour(label)) / 255) ** 2.2
    assert (linear @ [0.2126, 0.7152, 0.0722] + 0.05) / 0.05 > 4.5, "contrast of WCAG"


def test_values_run_from_dark_to_light():
    drawn = np.asarray(draw_values(np.array([[0.0, 0.5, 1.0]]), (30, 10)).convert("L"))
    dark, middle, light = (int(drawn[5, x]) for x in (5, 15, 25))
    assert dark + 40 < middle < light - 40


def test_equal_values_have_one_colour():
    assert len(np.unique(np.asarray(draw_values(np.full((2, 3), 0.7), (30, 20))))) <= 3
