"""Processes of torchrun that answer together: how one joins and leaves them."""

import sys
from pathlib import Path

import pytest
from torch import distributed

from helpers.processes import wait_until
from setokim.evaluation.ranks import is_launched, joined


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """What torchrun tells the only process of a machine's third place."""
    values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "2"}
    for name, value in (values | {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)


def threads():
    """Threads of groups in this process; other tests may have left some. Only Linux lists them."""
    if sys.platform != "linux":
        pytest.skip("needs /proc to see the threads")
    return {
        path.parent.name
        for path in Path("/proc/self/task").glob("*/comm")
        if path.read_text().strip() == "pt_gloo_runloop"
    }


def test_one_process_is_not_launched():
    assert not is_launched()


# A thread that is left and releases a tensor while Python ends aborts the process.
def test_no_thread_is_left():
    before = threads()
    with joined() as index:
        assert index == 2 and distributed.get_world_size() == 1
        # After this, at least one has its name.
        distributed.barrier()
        assert threads() > before
    assert not distributed.is_initialized()
    wait_until(lambda: threads() <= before)


def test_no_thread_is_left_after_an_error():
    before = threads()
    with pytest.raises(KeyError), joined():
        distributed.barrier()
        raise KeyError
    assert not distributed.is_initialized()
    wait_until(lambda: threads() <= before)
