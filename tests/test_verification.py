"""When `backend="auto"` takes the Triton kernels on CUDA, and how it remembers that it may.

No GPU is needed: the device's identity is made up, and other processes run in place of the cases.
"""

import contextlib
import dataclasses
import json
import os
import threading
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.some_gpu import IDENTITY
from setok_kernels import dispatch, reference
from setok_kernels.compiled import Compiled
from setok_kernels.verification import identity, processes, trust, verdict
from setok_kernels.verification.verdict import Outcome, Verdict, VerificationWarning

pytest.importorskip("triton", exc_type=ImportError)

GPU = torch.device("cuda", 0)
TRITON = Compiled("triton")
PASSED = Verdict(IDENTITY, (Outcome("a", "passed", 1.0), Outcome("b", "passed", 2.0)), 3.0)
FAILED = dataclasses.replace(
    PASSED, outcomes=(Outcome("a", "passed", 1.0), Outcome("b", "failed", 2.0, "knn[0]: got 1\nat"))
)
UNKNOWN = dataclasses.replace(PASSED, outcomes=(), problem="a process could not start: no memory")


class Machine:
    """What a test decides, and how often the cases were run."""

    def __init__(self, folder):
        self.folder, self.runs, self.verdict = folder, 0, PASSED

    def run(self, device, found):
        assert device == GPU
        self.runs += 1
        return dataclasses.replace(self.verdict, identity=found)

    @property
    def file(self):
        return self.folder / "verified" / f"{trust.identify(GPU).key}.json"


def forget(monkeypatch):
    """As a new process would."""
    monkeypatch.setattr(trust, "_TRUSTED", {})
    monkeypatch.setattr(verdict, "_WARNED", set())


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU, whose kernels are right."""
    machine = Machine(tmp_path / "cache")
    monkeypatch.setenv("SETOK_CACHE", str(machine.folder))
    monkeypatch.delenv("SETOK_VERIFY", raising=False)
    monkeypatch.setattr(trust, "identify", lambda device: IDENTITY)
    monkeypatch.setattr(processes, "run_children", machine.run)
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    forget(monkeypatch)
    return machine


def auto(dtype=torch.bfloat16):
    return dispatch.select_backend("auto", GPU, dtype)


def test_the_first_call_verifies_and_later_processes_remember(machine, monkeypatch):
    assert auto() == auto() == TRITON and machine.runs == 1
    forget(monkeypatch)
    assert auto() == TRITON and machine.runs == 1
    assert json.loads(machine.file.read_text())["state"] == "passed"


def test_wrong_kernels_are_left_alone_with_a_warning_a_process(machine, monkeypatch):
    machine.verdict = FAILED
    said = r"wrong results on cuda:0 \(Some GPU\): b: knn\[0\]: got 1\. .*send the report .*\.json"
    with pytest.warns(VerificationWarning, match=said) as caught:
        assert auto() is auto() is reference
    assert len(caught) == 1 and str(machine.file) in str(caught[0].message)
    assert "knn[0]: got 1" in machine.file.read_text()
    forget(monkeypatch)
    with pytest.warns(VerificationWarning, match=said):
        assert auto() is reference
    assert machine.runs == 1


def test_what_could_not_be_run_is_not_remembered(machine, monkeypatch):
    machine.verdict = UNKNOWN
    with pytest.warns(VerificationWarning, match="could not be verified .*: no memory") as caught:
        assert auto() is auto() is reference
    assert len(caught) == 1 and machine.runs == 1 and not machine.file.exists()
    forget(monkeypatch)
    machine.verdict = PASSED
    assert auto() == TRITON and machine.runs == 2


def test_an_explicit_backend_is_not_second_guessed(machine):
    machine.verdict = FAILED
    assert dispatch.select_backend("triton", GPU, torch.bfloat16) == TRITON
    assert dispatch.select_backend("reference", GPU, torch.bfloat16) is reference
    assert machine.runs == 0


def test_float64_is_the_reference_s(machine):
    assert auto(torch.float64) is reference and machine.runs == 0
    with pytest.raises(RuntimeError, match=r"float32, bfloat16 or float16, got torch\.float64"):
        dispatch.select_backend("triton", GPU, torch.float64)


def test_other_devices_are_not_asked(machine):
    assert dispatch.select_backend("auto", torch.device("meta")) is reference
    assert dispatch.select_backend("auto", torch.device("cpu")) != TRITON
    assert machine.runs == 0


def test_interpreted_kernels_are_not_taken(machine, monkeypatch):
    monkeypatch.setattr(dispatch, "_interpreted", lambda: True)
    assert auto() is reference and machine.runs == 0


def test_the_current_device_where_none_is_named(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert dispatch.select_backend("auto", torch.device("cuda"), torch.float32) == TRITON
    assert machine.runs == 1


def test_zero_trusts_the_kernels(machine, monkeypatch):
    machine.verdict = FAILED
    monkeypatch.setenv("SETOK_VERIFY", "0")
    assert auto() == TRITON and machine.runs == 0 and not machine.folder.exists()


def test_force_verifies_once_a_process(machine, monkeypatch):
    with pytest.warns(VerificationWarning):
        machine.verdict = FAILED
        assert auto() is reference
    monkeypatch.setenv("SETOK_VERIFY", "force")
    machine.verdict = PASSED
    forget(monkeypatch)
    assert auto() == auto() == TRITON and machine.runs == 2
    monkeypatch.setenv("SETOK_VERIFY", "1")
    forget(monkeypatch)
    assert auto() == TRITON and machine.runs == 2


@pytest.mark.parametrize("value", ["", "2", "yes", "Force"])
def test_other_modes_are_errors(value, machine, monkeypatch):
    monkeypatch.setenv("SETOK_VERIFY", value)
    with pytest.raises(ValueError, match=f"^SETOK_VERIFY: expected one of .*, got '{value}'"):
        auto()


@contextlib.contextmanager
def recorded_by(how, monkeypatch):
    with contextlib.ExitStack() as stack:
        if how == "fake tensors":
            stack.enter_context(FakeTensorMode())
        elif how == "make_fx":
            from torch.fx.experimental import proxy_tensor

            patch = stack.enter_context(monkeypatch.context())
            patch.setattr(proxy_tensor, "get_proxy_mode", object)
        elif how == "CUDA graph":
            patch = stack.enter_context(monkeypatch.context())
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            patch.setattr(torch.cuda, "device", contextlib.nullcontext)
        yield


RECORDERS = ["fake tensors", "make_fx", "CUDA graph"]


@pytest.mark.parametrize("how", RECORDERS)
def test_nothing_is_verified_while_a_graph_is_recorded(how, machine, monkeypatch):
    with recorded_by(how, monkeypatch), pytest.warns(VerificationWarning) as caught:
        assert auto() is auto() is reference
    assert len(caught) == 1 and "have not been verified on cuda:0" in str(caught[0].message)
    assert machine.runs == 0
    # Nothing is decided by that: the next call does it.
    assert auto() == TRITON and machine.runs == 1
    with recorded_by(how, monkeypatch):
        assert auto() == TRITON


@pytest.mark.parametrize("mode", ["1", "force"])
@pytest.mark.parametrize("how", RECORDERS)
def test_what_is_remembered_counts_while_a_graph_is_recorded(how, mode, machine, monkeypatch):
    auto()
    forget(monkeypatch)
    monkeypatch.setenv("SETOK_VERIFY", mode)
    with recorded_by(how, monkeypatch):
        assert auto() == TRITON
    assert machine.runs == 1
    # What is forced waits for a call that may do it.
    assert auto() == TRITON and machine.runs == (2 if mode == "force" else 1)


def test_a_compiler_follows_the_choice(machine, monkeypatch):
    # A compiler itself would ask a CUDA device for its random state.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    backend = dispatch._BACKENDS["triton"]
    able = dataclasses.replace(backend, can_run=lambda *_, **__: True)
    backends = {"triton": able, "reference": dispatch._BACKENDS["reference"]}
    monkeypatch.setattr(dispatch, "_BACKENDS", backends)

    def call(x):
        chosen = dispatch.select_backend("auto", GPU, torch.bfloat16)
        return x + 1 if isinstance(chosen, Compiled) else x - 1

    x = torch.zeros(2)
    with pytest.warns(VerificationWarning, match="traced or captured"):
        assert torch.compile(call, fullgraph=True, backend="eager")(x).tolist() == [-1, -1]
    assert machine.runs == 0
    assert auto() == TRITON
    torch._dynamo.reset()
    assert torch.compile(call, fullgraph=True, backend="eager")(x).tolist() == [1, 1]
    assert machine.runs == 1


def test_threads_wait_for_one_another(machine):
    found = []
    threads = [threading.Thread(target=lambda: found.append(auto())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [TRITON] * 4 and machine.runs == 1


def in_a_fork(work) -> int:
    """Exit status of a forked process that does some work: 0 if that returns."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_does_not_wait_for_a_thread_it_does_not_have(machine):
    with trust._ONE_THREAD:
        process = in_a_fork(lambda: trust._ONE_THREAD.acquire(timeout=0) or 1 / 0)
        assert os.waitpid(process, 0)[1] == 0
    process = in_a_fork(lambda: auto() == TRITON or 1 / 0)
    assert os.waitpid(process, 0)[1] == 0
    # It has left its verdict.
    assert auto() == TRITON and machine.runs == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_waits_for_the_verdict_of_another(machine, monkeypatch):
    begun, begins = os.pipe()
    done, ends = os.pipe()

    def slow(device, found):
        os.write(begins, b"x")
        os.read(done, 1)
        return PASSED

    def first():
        monkeypatch.setattr(processes, "run_children", slow)
        assert auto() == TRITON

    process, found = in_a_fork(first), []
    os.read(begun, 1)
    # This one asks while the other holds the lock, and lets it go on only when it waits.
    asked = threading.Thread(target=lambda: found.append(auto()))
    asked.start()
    asked.join(0.1)
    waits = asked.is_alive() and not found
    os.write(ends, b"x")
    asked.join(30)
    assert os.waitpid(process, 0)[1] == 0
    assert waits and found == [TRITON] and machine.runs == 0
    for descriptor in (begun, begins, done, ends):
        os.close(descriptor)


def test_a_process_does_not_wait_for_ever(machine, monkeypatch):
    monkeypatch.setattr(processes, "LIMIT_SECONDS", 0.01)
    held = r"another process has held .*\.lock for 0 s"
    with (
        verdict.one_at_a_time(IDENTITY, 1),
        pytest.warns(VerificationWarning, match=held),
    ):
        assert auto() is reference
    assert machine.runs == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "null",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace("Some GPU", "Another GPU"),
        lambda text: text.replace('"passed"', '"fine"'),
        lambda text: text.replace('"outcomes"', '"incomes"'),
        lambda text: text.replace('"seconds": 3.0', '"seconds": "long"'),
        lambda text: "\0" * 20,
    ],
)
def test_damaged_entries_are_made_anew(damage, machine, monkeypatch):
    auto()
    whole = machine.file.read_text()
    machine.file.write_text(damage(whole))
    assert machine.file.read_text() != whole
    forget(monkeypatch)
    assert auto() == TRITON and machine.runs == 2
    assert machine.file.read_text() == whole
    # Nothing else is left behind.
    names = {path.name for path in machine.file.parent.iterdir()}
    assert names == {machine.file.name, machine.file.with_suffix(".lock").name}


def test_bytes_that_are_no_text_are_made_anew(machine, monkeypatch):
    auto()
    machine.file.write_bytes(b"\xff\xfe\xfa")
    forget(monkeypatch)
    assert auto() == TRITON and machine.runs == 2


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(identity.Identity)])
def test_a_verdict_is_of_one_device_driver_and_version(name, machine, monkeypatch):
    auto()
    other = dataclasses.replace(IDENTITY, **{name: "another"})
    assert other.key != IDENTITY.key
    forget(monkeypatch)
    monkeypatch.setattr(trust, "identify", lambda device: other)
    assert auto() == TRITON and machine.runs == 2


@pytest.mark.parametrize("where", ["below a file", "no home"])
def test_a_folder_that_cannot_be_written(where, machine, monkeypatch, tmp_path):
    if where == "below a file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("SETOK_CACHE", str(tmp_path / "file" / "cache"))
    else:
        monkeypatch.delenv("SETOK_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def nowhere(path):
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(verdict.Path, "expanduser", nowhere)
    with pytest.warns(VerificationWarning, match="cannot cache .*SETOK_CACHE") as caught:
        assert auto() == TRITON
    assert len(caught) == 1
    # The report of a failure lies elsewhere then.
    forget(monkeypatch)
    machine.verdict = FAILED
    monkeypatch.setattr(verdict.tempfile, "tempdir", str(tmp_path))
    with pytest.warns(VerificationWarning) as caught:
        assert auto() is reference
    (report,) = tmp_path.glob("setok-verification-*/report.json")
    said = str(caught[-1].message)
    assert "wrong results" in said and str(report) in said and machine.runs == 2


def test_where_verdicts_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("SETOK_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert verdict.cache_folder() == tmp_path / ".cache" / "setok_kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert verdict.cache_folder() == tmp_path / "x" / "setok_kernels"


def test_the_identity_of_a_device(monkeypatch, tmp_path):
    properties = types.SimpleNamespace(name="Some GPU", major=9, minor=0, uuid="GPU-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(identity, "_DRIVER_NOTE", tmp_path / "version")
    (tmp_path / "version").write_text("NVRM version:  580.65.06\nGCC version\n")
    identity._driver.cache_clear()
    found = identity.identify(GPU)
    identity._driver.cache_clear()
    assert (found.device, found.capability, found.uuid) == ("Some GPU", "9.0", "GPU-1")
    assert found.driver.endswith("(NVRM version: 580.65.06)")
    assert torch.__version__ in found.torch and found.package == dispatch_version()
    assert found == dataclasses.replace(identity.identify(GPU), driver=found.driver)


def dispatch_version():
    import setok_kernels

    return setok_kernels.__version__


def test_the_sources_count(monkeypatch, tmp_path):
    digest = identity._digest_of_sources.__wrapped__
    monkeypatch.setattr(
        identity.importlib.util,
        "find_spec",
        lambda name: types.SimpleNamespace(submodule_search_locations=[str(tmp_path)]),
    )
    (tmp_path / "a.py").write_text("1")
    first = digest()
    assert digest() == first
    (tmp_path / "a.py").write_text("2")
    second = digest()
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, digest()}) == 3
