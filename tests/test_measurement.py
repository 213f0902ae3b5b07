"""What is measured for coverage, and what is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import sys
import pytest

@pytest.mark.no_cover
def test_left_out():
    assert sys.gettrace() is None

def test_measured():
    assert sys.gettrace() is not None
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_no_cover_stops_the_measurement(tmp_path, workers):
    (tmp_path / "conftest.py").write_text("from helpers.measurement import pytest_sessionstart\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = no_cover: not measured\n")
    (tmp_path / "test_both.py").write_text(TESTS)
    options = ["-q", "-p", "no:cacheprovider", "--cov=.", "--cov-report=", "-n", workers]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
