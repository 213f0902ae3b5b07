"""The PTX emulator itself: right where the answer is known, and blind to no planted fault."""

import pytest

from helpers.emulated import emulate

pytest.importorskip("triton", exc_type=ImportError)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [90, 80])
def test_emulator(arch):
    child = emulate("selftest", "--arch", arch, "--quick")
    assert child.returncode == 0, child.stdout
    assert "wrong: memory nobody wrote" in child.stdout
