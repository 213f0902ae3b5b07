"""Results of the compiled kernels do not depend on the order of programs and warps."""

import pytest

from helpers.emulated import emulate

pytest.importorskip("triton", exc_type=ImportError)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [90, 80])
def test_any_schedule_gives_the_same_bits(arch):
    child = emulate("schedules", "--arch", arch, "--seeds", 3)
    assert child.returncode == 0, child.stdout
    assert child.stdout.count("ok ") == 6, child.stdout
