import dataclasses

import numpy as np
import pytest
from PIL import Image

from helpers.drawn_clusters import clusters_by_hand
from setokim.utils.palette import colour, palette
from setokim.visualization.cluster_maps import (
    _seed_sign,
    _title,
    draw_contact_sheet,
    draw_map,
    draw_seeds,
    fit,
)


def test_colours_are_distinct():
    colours = palette(64).astype(int)
    apart = np.abs(colours[:, None] - colours[None]).max(-1)
    assert apart[~np.eye(64, dtype=bool)].min() >= 8
    # Consecutive clusters are often neighbours.
    assert apart[np.arange(63), np.arange(1, 64)].min() > 60
    assert palette(0).shape == (0, 3)


def test_the_map_shows_clusters_boundaries_and_seeds():
    drawn = np.asarray(draw_map(clusters_by_hand([[0, 1]], [(0, 0), (0, 1)]), (200, 100))).astype(
        int
    )
    left, right = drawn[10, 10], drawn[10, 190]
    assert np.abs(left - right).max() > 60
    assert drawn[10, 98:102].min(-1).max() > 225, "the boundary is white"
    assert drawn[10, 40:60].std(0).max() == 0, "no boundary inside a cluster"
    ring = drawn[50, 30:70]
    assert (ring.min(-1) > 230).any() and (ring.max(-1) < 60).any(), "a light and a dark ring"


def pixels_of(image, label):
    """How many pixels have the colour of a seed's disc."""
    return (np.abs(np.asarray(image).astype(int) - colour(label)).max(-1) < 30).sum()


def test_seeds_that_would_cover_an_earlier_number_are_dots():
    # Patches of 14 pixels, rings of 22.
    result = clusters_by_hand([[0, 1, 2, 3, 4, 4]], [(0, 0), (0, 1), (0, 2), (0, 3), (0, 5)])
    image = Image.new("RGB", (84, 14))
    draw_seeds(image, result, [0, 1, 2, 4])
    areas = [pixels_of(image, label) for label in range(5)]
    assert all(areas[label] > 60 for label in (0, 2, 4)), areas
    assert 3 < areas[1] < 30 and areas[3] == 0, areas
    # The first of the labels has its number, not the lowest.
    image = Image.new("RGB", (84, 14))
    draw_seeds(image, result, [1, 0])
    assert pixels_of(image, 1) > 60 and pixels_of(image, 0) < 30


def test_a_dot_hides_nothing_of_a_number():
    # Patches of 10 pixels, discs of 18.
    result = clusters_by_hand([[0, 0, 0, 1, 1, 1]], [(0, 2), (0, 3)])
    alone, both = Image.new("RGB", (60, 20)), Image.new("RGB", (60, 20))
    draw_seeds(alone, result, [0])
    draw_seeds(both, result, [0, 1])
    disc = np.s_[2:18, 17:33]
    assert np.array_equal(np.asarray(both)[disc], np.asarray(alone)[disc])
    assert not np.array_equal(np.asarray(both), np.asarray(alone))


def test_seeds_of_neighbours_have_numbers_where_their_rings_touch():
    result = clusters_by_hand([[0, 1], [2, 3]], [(0, 0), (0, 1), (1, 0), (1, 1)])
    image = Image.new("RGB", (47, 47))
    draw_seeds(image, result, range(4))
    assert all(pixels_of(image, label) > 120 for label in range(4))


@pytest.mark.parametrize("label", [7, 42, 144, 1234])
@pytest.mark.parametrize("radius", [9, 14])
def test_numbers_stay_within_their_discs(label, radius):
    sign = np.asarray(_seed_sign(label, radius)).astype(int)
    red, green, blue = colour(label)
    ink = (24, 28, 36) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
    centre = (np.array(sign.shape[:2]) - 1) / 2
    places = np.argwhere(np.abs(sign[..., :3] - ink).max(-1) < 60)
    away = np.hypot(*(places - centre).T)
    # The rings, then a gap of the disc's colour, then the number.
    assert not ((away > radius - 1) & (away < radius - 0.5)).any()
    assert (away < radius - 1).sum() > 5


def test_a_title_is_one_line_that_can_be_drawn():
    drawn = dataclasses.replace(clusters_by_hand([[0]], [(0, 0)]), name="two\nlines\udcff")
    assert _title(drawn) == r"two\nlines\xff: 1 token"


def test_the_residual_is_hatched_grey():
    drawn = np.asarray(draw_map(clusters_by_hand([[0, 1]], [(0, 0)]), (200, 100))).astype(int)
    residual = drawn[20:80, 120:180]
    assert np.ptp(residual, axis=-1).max() == 0, "grey"
    assert residual.std() > 20, "striped"


def test_an_image_without_clusters_has_a_map():
    drawn = draw_map(clusters_by_hand([[0, 0]], []), (40, 20))
    assert drawn.size == (40, 20)


def test_the_contact_sheet_holds_every_image():
    picture = clusters_by_hand([[0, 1]], [(0, 0), (0, 1)])
    one = draw_contact_sheet([picture])
    five = draw_contact_sheet([picture] * 5)
    assert five.width > 3.8 * one.width - 100 and five.height > 1.8 * one.height


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 50), (40, 20)), ((10, 100), (3, 30)), ((10000, 1), (40, 1))]
)
def test_fit_keeps_the_shape(size, expected):
    assert fit(size, (40, 30)) == expected
