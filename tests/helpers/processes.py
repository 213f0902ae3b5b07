"""Processes seen from outside: whether one is alive, and those that a test has started."""

import time
from pathlib import Path


def alive(pid):
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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
