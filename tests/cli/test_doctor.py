import json
import subprocess
import sys

import pytest
import torch

import setok_kernels as sk
from helpers.extras import all_extras
from setok_cli import doctor
from setok_cli.main import main
from setok_kernels import _native
from setok_kernels.verification import trust
from setok_kernels.verification.identity import identify
from setok_kernels.verification.verdict import Outcome, Verdict, remember


def test_the_report(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"setok-kernels {sk.__version__}" in said
    assert torch.__version__ in said
    for heading in ("backends", "compiled CPU kernels", "versions", "CPU", "accelerators"):
        assert f"\n{heading}\n" in said
    for name, reason in sk.backends().items():
        line = next(line for line in said.splitlines() if line.split()[:1] == [name])
        assert line.endswith("ok") if reason is None else "cannot run: " in line


def test_the_report_as_json(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["version"] == sk.__version__
    assert {name: reason is None for name, reason in report["backends"].items()} == {
        name: reason is None for name, reason in sk.backends().items()
    }
    assert list(report["versions"]) == ["python", *doctor._PACKAGES]
    assert report["versions"]["torch"] == torch.__version__
    assert report["cpu"]["threads"] == torch.get_num_threads()
    assert report["accelerators"] == []


def test_missing_packages_are_null_in_json(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("no-such-package",))
    monkeypatch.setattr(doctor, "_try_backend", lambda name: f"should run but fails: {name}")
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["no-such-package"] is None
    assert report["backends"]["reference"] == "should run but fails: reference"


def test_a_broken_reference_is_a_failure(capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no arithmetic today")

    monkeypatch.setattr(sk, "cluster_tokens", fail)
    assert main(["doctor"]) == 1
    assert "should run but fails: no arithmetic today" in capsys.readouterr().out


def test_a_wrong_reference_is_a_failure(capsys, monkeypatch):
    cluster_tokens = sk.cluster_tokens

    def mix_up(tokens, *_, **__):
        out = cluster_tokens(tokens)
        out.labels.copy_(torch.tensor([[0, 1, 0, 1]]))
        return out

    monkeypatch.setattr(sk, "cluster_tokens", mix_up)
    assert main(["doctor"]) == 1
    assert "puts two pairs of tokens into [0, 1, 0, 1]" in capsys.readouterr().out


def test_missing_packages_come_with_the_remedy(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("no-such-package",))
    monkeypatch.setitem(doctor._EXTRAS, "no-such-package", "some")
    monkeypatch.setattr(_native, "why_missing", lambda: "was never built; build it")
    main(["doctor"])
    said = capsys.readouterr().out
    assert 'not installed; pip install "setok-kernels[some]"' in said
    assert "was never built; build it" in said


def test_remedies_name_the_missing_packages():
    brought = all_extras()
    assert not [name for name, extra in doctor._EXTRAS.items() if name not in brought[extra]]
    assert set(doctor._EXTRAS) <= set(doctor._PACKAGES)


def test_the_compiled_kernels_are_described(capsys, monkeypatch):
    class Module:
        @staticmethod
        def build_info():
            return {"compiler": "some compiler", "openmp": True, "isas": ["fast", "slow"]}

    monkeypatch.setattr(_native, "why_missing", lambda: None)
    monkeypatch.setattr(_native, "internals", lambda: Module)
    main(["doctor"])
    assert "compiler some compiler, openmp True, isas fast slow" in capsys.readouterr().out


def test_an_instruction_set_that_the_processor_lacks_is_reported(capsys, monkeypatch):
    class Module:
        @staticmethod
        def build_info():
            raise ValueError("SETOK_CPU_CAPABILITY: expected one of avx2, got 'avx512'")

    monkeypatch.setattr(_native, "why_missing", lambda: None)
    monkeypatch.setattr(_native, "internals", lambda: Module)
    main(["doctor"])
    assert "expected one of avx2, got 'avx512'" in capsys.readouterr().out


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Fake device with a verdict of the test; yields the verifier."""

    class Properties:
        name, major, minor, total_memory, uuid = "Some GPU", 9, 0, 80 * 2**30, "GPU-1"

    class Kernels:
        verdict, runs = None, 0

        def verify(self, device, again):
            assert device == torch.device("cuda", 0) and again
            self.runs += 1
            return self.verdict, remember(self.verdict)

    kernels = Kernels()
    monkeypatch.setenv("SETOK_CACHE", str(tmp_path))
    monkeypatch.delenv("SETOK_VERIFY", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(doctor, "_try_backend", lambda name: None)
    monkeypatch.setattr(trust, "verify", kernels.verify)
    kernels.identity = identify(torch.device("cuda", 0))
    return kernels


def test_devices_are_listed(gpu, capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "cuda:0  Some GPU, sm 9.0, 80 GiB" in said
    assert "not verified yet; the first call with backend='auto' does it" in said
    assert gpu.runs == 0


def test_no_devices_are_listed(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "none that this torch can use" in said and "Triton kernels" not in said


def test_a_verification_is_shown_and_remembered(gpu, capsys):
    gpu.verdict = Verdict(gpu.identity, (Outcome("exact tokens", "passed", 1.5),), 12.0)
    assert main(["doctor", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "passed     1.5 s  exact tokens" in said and "verified, 1 cases in 12 s" in said
    assert main(["doctor"]) == 0
    assert "verified, 1 cases in 12 s" in capsys.readouterr().out
    assert gpu.runs == 1


def test_wrong_kernels_are_a_failure(gpu, capsys):
    outcome = Outcome("exact tokens", "failed", 1.5, "knn[0]: got 1\nTraceback")
    gpu.verdict = Verdict(gpu.identity, (outcome,), 12.0)
    assert main(["doctor", "--verify"]) == 1
    said = capsys.readouterr().out
    assert "knn[0]: got 1" in said and "send the report" in said and "Traceback" not in said
    # The stored verdict is shown; nothing was run that could fail.
    assert main(["doctor"]) == 0
    assert "give wrong results on cuda:0 (Some GPU)" in capsys.readouterr().out


def test_verdicts_as_json(gpu, capsys):
    outcome = Outcome("exact tokens", "failed", 1.5, "knn[0]: got 1\nTraceback")
    gpu.verdict = Verdict(gpu.identity, (outcome,), 12.0)

    def devices(*options):
        code = main(["doctor", "--json", *options])
        return code, json.loads(capsys.readouterr().out)["accelerators"]

    code, [found] = devices()
    assert code == 0 and found["state"] is None and not found["failed"]
    assert (found["device"], found["name"], found["capability"]) == ("cuda:0", "Some GPU", "9.0")
    assert found["memory_bytes"] == 80 * 2**30
    code, [found] = devices("--verify")
    assert code == 1 and found["state"] == "failed" and found["failed"]
    assert "send the report" in found["verification"]
    # A stored verdict without a new verification.
    code, [found] = devices()
    assert code == 0 and found["state"] == "failed" and not found["failed"]


def test_an_absent_verification_is_named(gpu, capsys, monkeypatch):
    monkeypatch.setenv("SETOK_VERIFY", "0")
    main(["doctor"])
    assert "SETOK_VERIFY=0 takes the kernels whatever comes of it" in capsys.readouterr().out


def test_devices_that_cannot_be_verified(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor", "--verify"]) == 2
    assert "--verify: expected a CUDA device" in capsys.readouterr().err
    monkeypatch.setenv("SETOK_VERIFY", "maybe")
    assert main(["doctor"]) == 2
    assert "SETOK_VERIFY: expected one of 0, 1, force, got 'maybe'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_doctor_needs_no_extras():
    """Neither pillow nor rich nor the pipeline is imported."""
    blocked = ("PIL", "rich", "transformers", "setokim")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from setok_cli.main import main; sys.exit(main(['doctor']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "reference" in run.stdout


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert sk.__version__ in capsys.readouterr().out


def test_a_reader_that_closes_the_pipe():
    code = "import sys; from setok_cli.main import main; sys.exit(main(['doctor']))"
    command = [sys.executable, "-c", code]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdout.close()
    said = child.stderr.read()
    assert child.wait() == 0 and said == ""
