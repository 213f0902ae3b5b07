"""The helper that thins out grids of test cases keeps every pair of values."""

import itertools

import pytest

from helpers.pairwise import pairwise

AXES = dict(a=(1, 2, 3), b="xyz", c=(True, False), d=(None, 0, 0.5, 1))


def pairs_of(case):
    return set(itertools.combinations(enumerate(case), 2))


def test_every_pair_is_covered():
    cases = pairwise(**AXES)
    every = set().union(*map(pairs_of, itertools.product(*AXES.values())))
    assert set().union(*map(pairs_of, cases)) == every
    # The two longest axes alone need 12; the full cross has 72.
    assert 12 <= len(cases) <= 16
    assert len(set(cases)) == len(cases)


def test_each_case_covers_something_new():
    seen = set()
    for case in pairwise(**AXES):
        assert pairs_of(case) - seen
        seen |= pairs_of(case)


def test_two_axes_are_the_full_cross():
    assert sorted(pairwise(a=(1, 2), b=(3, 4, 5))) == [*itertools.product((1, 2), (3, 4, 5))]


def test_the_cases_are_the_same_every_time():
    assert pairwise(**AXES) == pairwise(**AXES)


def test_values_need_no_hash():
    assert pairwise(a=[{}], b=[[1], [2]]) == [({}, [1]), ({}, [2])]


def test_equal_values_are_cases_of_their_own():
    assert pairwise(a=(1, 1.0), b=(True,)) == [(1, True), (1.0, True)]


def test_misuse_is_named():
    with pytest.raises(ValueError, match="axes: expected at least 2, got 1"):
        pairwise(a=(1, 2))
    with pytest.raises(ValueError, match="b: expected at least one value, got none"):
        pairwise(a=(1, 2), b=())
