"""Processes seen from outside: whether one is alive, and those that a test has started."""

import os
import sys
import time
from pathlib import Path


def _status(pid):
    """State and parent of a process; None if there is none."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        return state, int(parent)
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(pid):
    """Whether a process runs; one that has ended but was not waited for does not."""
    found = _status(pid)
    return found is not None and found[0] != "Z"


def parent(pid):
    """Parent of a process; None if there is no such process."""
    found = _status(pid)
    return None if found is None else found[1]


def children(pid):
    """Processes whose parent is another."""
    found = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [child for child in found if parent(child) == pid]


def title(pid):
    """Command line of a process, or what it calls itself."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def marked(mark):
    """Processes whose environment has a text, as all that inherit it have."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and alive(folder.name):
                found.append(int(folder.name))
        except OSError:
            # It has ended, or is another user's.
            pass
    return found


def wait_until(condition, seconds=20.0):
    """Wait until a function returns something true, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"did not happen in {seconds} s"
        time.sleep(0.01)
    return found


def end_rank():
    """End this process, one of torch.distributed, once all have come here; Python does not end.

    Wrappers hold the group and its threads, and one that releases a tensor while Python ends aborts
    the process.
    """
    from torch import distributed

    distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
