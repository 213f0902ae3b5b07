"""One process a folder."""

import os
import signal
import subprocess
import sys

import pytest

from setokim.utils.folder_lock import FolderInUseError, locked

_HOLD = """
import sys
from setokim.utils.folder_lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_gets_the_name_of_the_holder(tmp_path, holder):
    message = f"^--out: .*held by process {holder.pid} on "
    with pytest.raises(FolderInUseError, match=message), locked(tmp_path, "--out"):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        pass


def test_the_lock_ends_with_its_block_and_makes_the_folder(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "a" / "b"):
            message = f"process {os.getpid()} "
            with pytest.raises(FolderInUseError, match=message), locked(tmp_path / "a" / "b"):
                pass


def test_an_unknown_holder(tmp_path):
    with locked(tmp_path):
        (tmp_path / ".lock-holder.json").write_text("{")
        message = r"held by another process$"
        with pytest.raises(FolderInUseError, match=message), locked(tmp_path):
            pass
