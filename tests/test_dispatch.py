"""Which backend runs."""

import dataclasses

import pytest
import torch

import setok_kernels as sk
from setok_kernels import dispatch, reference, testing
from setok_kernels.compiled import Compiled


@pytest.fixture
def asked(monkeypatch):
    """Devices that a backend, faster than all others but never able to run, is asked about."""
    devices = []

    def can_run(device, *dtypes, raise_error=False):
        devices.append(device)
        if raise_error:
            raise RuntimeError("backend='fast' cannot run: it is imaginary; use another")
        return False

    fast = dispatch._Backend(can_run, make=None)
    monkeypatch.setattr(dispatch, "_BACKENDS", {"fast": fast, **dispatch._BACKENDS})
    return devices


def test_auto_asks_for_the_device_of_the_tokens(asked):
    x = torch.zeros(1, 4, 2, device="meta")
    out = sk.cluster_tokens(x, sk.ClusterConfig(max_clusters=2))
    merged = sk.merge_tokens(x, out)
    sk.unmerge_tokens(merged, out)
    assert asked == [torch.device("meta")] * 3


def test_an_explicit_backend_does_not_fall_back(asked):
    with pytest.raises(RuntimeError, match="it is imaginary; use another"):
        sk.cluster_tokens(torch.zeros(1, 4, 2), backend="fast")
    assert sk.backends()["fast"] == "backend='fast' cannot run: it is imaginary; use another"


def test_reference_runs_everywhere():
    assert sk.backends()["reference"] is None
    assert dispatch.select_backend("reference", torch.device("meta")) is reference


def test_names_in_order_of_preference():
    assert list(sk.backends()) == ["cpp", "triton", "reference"]


def test_defaults_of_merge_and_unmerge():
    x = testing.planted_clusters(1, 10, 3, 3)[0]
    out = sk.cluster_tokens(x)
    merged = sk.merge_tokens(x, out)
    assert torch.equal(merged, sk.merge_tokens(x, out, "hard", None, 1e-6, "auto"))
    assert torch.equal(sk.merge_tokens(x, out, "soft"), sk.merge_tokens(x, out, "soft", eps=1e-6))
    assert not torch.equal(
        sk.merge_tokens(x, out, "soft"), sk.merge_tokens(x, out, "soft", eps=1e-2)
    )
    assert torch.equal(sk.unmerge_tokens(merged, out), sk.unmerge_tokens(merged, out, "hard"))


def test_auto_takes_triton_where_it_is_trusted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device, asked = torch.device("cuda", 1), []
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    for trusted in (False, True):

        def is_trusted(*arguments, trusted=trusted):
            asked.append(arguments)
            return trusted

        monkeypatch.setattr(dispatch.trust, "is_trusted", is_trusted)
        chosen = dispatch.select_backend("auto", device, torch.float32)
        assert chosen == (Compiled("triton") if trusted else reference)
    assert asked == [(1,)] * 2


def test_auto_interprets_nothing(monkeypatch):
    """Where the C++ kernels are missing the interpreter is no substitute."""
    monkeypatch.setattr(dispatch, "_why_no_cpp", lambda: "it is gone")
    assert dispatch.can_run_triton(torch.device("cpu"))
    dispatch._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="runs on its reference backend.*it is gone"):
        assert dispatch.select_backend("auto", torch.device("cpu")) is reference


def test_masks_decide_the_dtype_of_a_soft_merge(monkeypatch):
    x = testing.planted_clusters(1, 10, 3, 3)[0]
    out = sk.cluster_tokens(x)
    wide = dataclasses.replace(out, masks=out.masks.double())
    tokens = sk.merge_tokens(x, wide, "hard", backend="triton")
    for call in (
        lambda: sk.merge_tokens(x, wide, "soft", backend="triton"),
        lambda: sk.unmerge_tokens(tokens, wide, "soft", backend="triton"),
    ):
        with pytest.raises(RuntimeError, match=r"backend='triton' cannot run: .*got torch.float64"):
            call()


def test_triton_without_the_package(monkeypatch):
    monkeypatch.setattr(dispatch._triton_package, "is_installed", lambda: False)
    said = r'the package triton is not installed; pip install "setok-kernels\[triton\]", or use'
    with pytest.raises(RuntimeError, match=said):
        dispatch.can_run_triton(torch.device("cpu"), raise_error=True)


def test_result_is_a_frozen_record():
    out = sk.cluster_tokens(torch.zeros(1, 4, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        out.counts = None


def test_triton_takes_cuda_tensors_unless_interpreted(monkeypatch):
    assert dispatch.can_run_triton(torch.device("cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="expected CUDA tensors, got cpu"):
        dispatch.can_run_triton(torch.device("cpu"), raise_error=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "expected a CUDA device" in sk.backends()["triton"]
