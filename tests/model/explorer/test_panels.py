"""What the page says of a clustering: captions, numbers, and texts of users in HTML."""

import numpy as np
import pytest

from helpers.drawn_clusters import clusters_by_hand
from setokim.explorer import panels
from setokim.explorer.links import VIEWS

SCRIPT = "<img src=x onerror=alert(1)>"


@pytest.fixture
def result():
    return clusters_by_hand([[0, 1, 1, 2]], [(0, 0), (0, 1)])


def test_the_views_are_those_of_links():
    assert tuple(panels.VIEWS) == VIEWS


def test_clusters_and_the_residual_are_described(result):
    said = panels.describe_cluster(result, 1)
    assert said == "Cluster 1: label of 2 patches, mass 2.0; seed in row 0, column 1."
    assert panels.describe_cluster(result, 2) == "Residual: label of 1 patch, mass 1.0."


def test_a_label_or_step_after_the_last_is_that_of_the_last(result):
    assert panels.detail(result, "mask", 9, 0)[1].startswith("Residual")
    assert panels.detail(result, "scope", 0, 9)[1].startswith("Scope after step 2 of 2: 0.250")
    assert panels.detail(result, "scope", 0, 0)[1].startswith("Scope after step 0 of 2: 1.000")


def test_a_view_that_a_function_does_not_have(result):
    image, said = panels.detail(result, "density", 0, 0)
    assert image is None and "computes none" in said


def test_statistics_have_their_range(result):
    result.values["density"] = np.array([[0.25, 0.5, 0.75, 1.0]])
    image, said = panels.detail(result, "density", 0, 0)
    assert image.size == result.photo.size and "0.25 (dark) to 1 (yellow), mean 0.625" in said


def test_sizes_are_listed_from_the_largest(result):
    table = panels.sizes_table(result, "A")
    assert table.index(">1</th>") < table.index(">0</th>") < table.index("residual</th>")
    assert "<td>2</td><td>2.0</td>" in table


def test_texts_of_users_are_escaped():
    for text in (panels.notice([SCRIPT]), panels.caption(SCRIPT)):
        assert "<img" not in text and "&lt;img" in text
    assert panels.notice([]) == ""
