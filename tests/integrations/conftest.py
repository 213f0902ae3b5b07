"""A tiny LLaVA for the tests of calls and registration; other files build their own models."""

import copy

import pytest

from helpers.tiny_vlms import FAMILIES


@pytest.fixture(scope="session")
def untouched():
    return FAMILIES["llava"].build()


@pytest.fixture
def model(untouched):
    return copy.deepcopy(untouched)
