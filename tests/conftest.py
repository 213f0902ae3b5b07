"""Fixtures and settings shared by all tests."""

import importlib.util
import os
import pathlib
import signal

# Read when triton is first imported; 0 runs the kernel tests on a GPU instead.
os.environ.setdefault("TRITON_INTERPRET", "1")
# What torch asks for before its matrix products on a GPU count as deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from hypothesis import HealthCheck, settings

import setok_kernels as sk
from helpers.browser import browser, pytest_terminal_summary, visitor  # noqa: F401
from helpers.measurement import pytest_sessionstart  # noqa: F401
from setok_kernels import compiled

# Shells start what runs in the background without an interrupt, and nohup without a hang-up. The
# children of tests would inherit that, and those that such a signal is sent to wait for ever.
for number, handler in {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: signal.SIG_DFL,
}.items():
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# The same cases every time, so that a red test stays red; `--hypothesis-profile=explore` looks for
# new ones.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.register_profile(
    "mutants", settings.get_profile("repeatable"), max_examples=25, database=None
)
settings.load_profile("repeatable")


# `make test` gives whole files to its workers: a long one begun last would leave the others idle.
LONG_FILES = [
    "packaging/test_packaging.py",
    "test_onnx.py",
    "model/training/test_stopping.py",
    "test_ops.py",
    "model/corpus/engines/test_ray_data.py",
    "model/training/stage2/test_stage.py",
    "model/training/test_trainer.py",
    "test_triton.py",
    "test_triton_backward.py",
    "test_triton_compile.py",
    "model/training/test_run_folder.py",
    "model/training/test_sharding.py",
]
FOLDER = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    """Long files first; interpreted kernels without coverage, which takes as long again."""
    left_out = [item for item in items if not is_asked_for(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if is_asked_for(item)]
    ranks = {FOLDER / name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
    for item in items:
        if hasattr(item, "callspec") and item.callspec.params.get("backend") == "triton":
            item.add_marker(pytest.mark.no_cover)
            # NumPy warns of what the kernels mask away.
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))


@pytest.fixture(autouse=True, scope="session")
def _poison():
    """Uninitialised memory is NaN or the largest integer; nondeterministic operations raise."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def can_interpret():
    """Whether Triton's kernels run here, on the CPU."""
    if os.environ["TRITON_INTERPRET"] != "1" or importlib.util.find_spec("triton") is None:
        return False
    from helpers import interpreter

    interpreter.repair()
    return True


# Every backend that runs on this machine's CPU.
BACKENDS = [name for name, reason in sk.backends().items() if reason is None and name != "triton"]
if can_interpret():
    BACKENDS.append("triton")


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request):
    """Each backend in turn, or those that the marker `backends` names."""
    return request.param


def is_asked_for(item):
    """Whether the fixture's backend is one of the marker's; Triton's kernels take no float64."""
    values = item.callspec.params if hasattr(item, "callspec") else {}
    if any("backend" in mark.args[0] for mark in item.iter_markers("parametrize")):
        # The test has a list of its own.
        return True
    marker = item.get_closest_marker("backends")
    if marker is not None and values.get("backend", marker.args[0]) not in marker.args:
        return False
    return values.get("backend") != "triton" or torch.float64 not in values.values()


@pytest.fixture(params=["dense", "streaming"])
def regime(request, monkeypatch):
    """Rows of distances are kept, or made again: in the compiled backends."""
    if request.param == "streaming":
        for name in compiled.DENSE_LIMITS:
            monkeypatch.setitem(compiled.DENSE_LIMITS, name, 0)
    return request.param


@pytest.fixture
def threads():
    """Sets the number of torch's threads; restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
