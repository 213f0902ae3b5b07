"""The fuzzer of calls: a short run of it, and that it finds what it looks for."""

import sys

import pytest
import torch

import setok_kernels as sk
from setok_kernels.testing import calls, fuzz

pytestmark = pytest.mark.skipif(
    sk.backends()["cpp"] is not None, reason="the compiled module is not there"
)


def test_every_call_returns_or_says_what_does_not_fit():
    counts, failures = fuzz.fuzz(400, 500)
    assert not failures, failures
    kinds = {kind for kind, _ in counts}
    assert kinds == {"returned", "refused"} and sum(counts.values()) == 500
    named = {message.split(": ")[-1] for kind, message in counts if kind == "refused"}
    assert {"labels", "masks", "knn", "valid", "x", "k"} <= named
    assert {"importance", "num_clusters", "rate", "budget", "exact"} <= named


def test_a_seed_is_one_call():
    """In whatever order: a failure is made again from its number alone."""
    for seed in (19, 3):
        one, two = calls.random_call(seed), calls.random_call(seed)
        assert one.name == two.name and one.spoiled == two.spoiled
        for name, value in one.arguments.items():
            if isinstance(value, torch.Tensor) and not value.is_meta:
                assert torch.equal(value, two.arguments[name]) or value.isnan().any(), name


def test_errors_without_a_name_are_failures():
    def call(error, **changes):
        def raises():
            raise error

        fields = dict(name="f", function=raises, arguments={}, spoiled=("x",), public=True)
        return fuzz.outcome(calls.Call(**(fields | changes)))

    assert call(ValueError("x: expected 1, got 2")) == (
        "refused",
        "ValueError: x: expected 1, got 2",
    )
    assert call(ValueError("x: expected 1"), spoiled=())[0] == "failed", "a valid call"
    assert call(ValueError("Boolean value of Tensor"))[0] == "failed", "names no argument"
    assert call(RuntimeError("x: expected 1"))[0] == "failed", "an internal error"
    assert call(RuntimeError("x: expected 1"), public=False)[0] == "refused"
    assert call(AttributeError("x: expected 1"), public=False)[0] == "failed"


def test_a_process_that_dies_is_a_failure_and_the_rest_goes_on(monkeypatch):
    program = (
        "import os; from setok_kernels.testing import calls, fuzz; make = calls.random_call; "
        "fuzz.random_call = lambda seed: os.abort() if seed == 2 else make(seed); fuzz.main()"
    )
    monkeypatch.setattr(fuzz, "COMMAND", (sys.executable, "-c", program))
    counts, failures = fuzz.fuzz(0, 5)
    assert len(failures) == 1 and failures[0].startswith("seed 2: ")
    assert sum(count for (kind, _), count in counts.items() if kind != "died") == 4
