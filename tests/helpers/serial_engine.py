"""An engine in the process of the test, in place of those of `setokim.corpus.engines`."""

import pytest

from setokim.corpus import run


def run_parts(factory, parts, options):
    worker = factory("cpu")
    for part in parts:
        yield part, worker(part)


@pytest.fixture
def serial_engine(monkeypatch):
    monkeypatch.setattr(run, "find_engine", lambda _: run_parts)
