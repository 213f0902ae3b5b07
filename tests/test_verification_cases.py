"""The cases that verify the Triton kernels on a user's device, here in the interpreter."""

import dataclasses
import os

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter", allow_module_level=True)

import triton
import triton.language as tl

from helpers import interpreter
from setok_kernels import compiled, functional
from setok_kernels.equivalence.cases import CASES, Sizes, run_cases
from setok_kernels.verification.groups import GROUPS
from setok_triton import backend, select
from setok_triton.select import FAR_INDEX, INFINITE

interpreter.repair()
# NumPy warns of what the kernels mask away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

NAMES = {case.name: case for case in CASES}
# These are others of the list in another dtype or precision, and take seconds here.
ALIKE = {
    "clustering of float32",
    "clustering of float16",
    "clustering of float32, precision high",
    "clustering of float32, precision medium",
    "gradients of bfloat16",
    "merging bfloat16",
}


@pytest.fixture(autouse=True)
def few_tokens_are_many(monkeypatch):
    monkeypatch.setitem(compiled.DENSE_LIMITS, "triton", 15)


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    """Choosing a backend may verify it first: whatever verifies may not choose."""
    plain = functional.select_backend

    def select_backend(name, *arguments):
        assert name in ("triton", "reference")
        return plain(name, *arguments)

    monkeypatch.setattr(functional, "select_backend", select_backend)


def outcome(name):
    sizes = Sizes(tokens=9, many=18, dim=6, clusters=3)
    (found,) = run_cases([NAMES[name]], torch.device("cpu"), sizes)
    assert found.case == name
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ALIKE])
def test_right_kernels_pass(name):
    found = outcome(name)
    assert found.state == "passed", found.message


@triton.jit
def take_last_of_the_least(b_bits, o_n):
    """`take_min` with the wrong rule for ties."""
    b_least = tl.min(b_bits, axis=1)
    m_least = b_bits == b_least[:, None]
    b_last = tl.max(tl.where(m_least, o_n, -1), axis=1)
    b_last = tl.where(b_least == INFINITE, FAR_INDEX, b_last)
    return b_least, b_last, tl.where(o_n == b_last[:, None], INFINITE, b_bits)


def test_a_wrong_rule_for_ties_is_found(monkeypatch):
    monkeypatch.setattr(select, "take_min", take_last_of_the_least)
    found = outcome("exact tokens, masked")
    assert found.state == "failed" and found.message.startswith("knn[")
    assert "Traceback" in found.message


def spoil(monkeypatch, operation, change):
    plain = getattr(backend, operation)
    monkeypatch.setattr(backend, operation, lambda *arguments: change(plain(*arguments)))


def first_is_larger(out):
    """The first result is 1 % larger."""
    return (out[0] * 1.01, *out[1:]) if isinstance(out, tuple) else out * 1.01


def labels_are_turned(out):
    return (torch.where(out[0] >= 0, out[0].roll(1, -1), -1), *out[1:])


@pytest.mark.parametrize(
    "name, operation, change",
    [
        ("packed images", "cluster", first_is_larger),
        ("clustering of bfloat16", "cluster", first_is_larger),
        ("many tokens", "cluster", first_is_larger),
        ("gradients of float32", "cluster_backward", first_is_larger),
        ("merging float32", "unmerge", first_is_larger),
        ("merging float32", "merge_backward", first_is_larger),
        ("dpc_knn", "dpc_knn", labels_are_turned),
        ("threshold_greedy", "threshold_greedy", labels_are_turned),
    ],
)
def test_a_wrong_kernel_is_found(name, operation, change, monkeypatch):
    spoil(monkeypatch, operation, change)
    found = outcome(name)
    assert found.state == "failed" and "Traceback" in found.message


def test_kernels_that_do_not_compile_are_found(monkeypatch):
    def fail(*_):
        raise RuntimeError("ptxas died")

    monkeypatch.setattr(backend, "threshold_greedy", fail)
    found = outcome("threshold_greedy")
    assert found.state == "failed" and "ptxas died" in found.message.splitlines()[0]


def test_a_full_device_says_nothing_about_the_kernels(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(backend, "threshold_greedy", fail)
    found = outcome("threshold_greedy")
    assert found.state == "unknown" and "no room" in found.message


def test_each_case_has_its_precision():
    seen, before = [], torch.get_float32_matmul_precision()

    def look(device, sizes):
        seen.append(torch.get_float32_matmul_precision())

    cases = [dataclasses.replace(case, run=look) for case in CASES]
    assert all(found.state == "passed" for found in run_cases(cases, torch.device("cpu")))
    assert seen == [case.precision for case in CASES] and set(seen) == {"highest", "high", "medium"}
    assert torch.get_float32_matmul_precision() == before


def test_each_case_is_in_one_group():
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(case.name for case in CASES)
