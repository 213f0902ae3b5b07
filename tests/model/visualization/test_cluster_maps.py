import dataclasses

import numpy as np
import pytest

from helpers.drawn_clusters import clusters_by_hand
from setokim.utils.palette import palette
from setokim.visualization.cluster_maps import _title, draw_contact_sheet, draw_map, fit


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
