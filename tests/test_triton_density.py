"""The density kernels in Triton's interpreter, and their machine code for Hopper."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Read when triton is first imported. Ask for 0 to run the same tests on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

pytest.importorskip("triton", exc_type=ImportError)

from setok_triton.density import (
    squared_norms,
    squared_norms_config,
    squared_norms_fwd_kernel,
)

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_the_kernels_are_interpreted_when_asked():
    # False if something imported triton before TRITON_INTERPRET was set.
    interpreted = type(squared_norms_fwd_kernel).__name__ == "InterpretedFunction"
    assert interpreted == (DEVICE == "cpu")


def exact_tokens(*shape, dtype=torch.float32):
    """Small integers: every partial sum is exact in every order, so equality is the test."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-3, 4, shape, generator=generator).to(DEVICE, dtype)


def expected_norms(x):
    out_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(out_dtype).square().sum(-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (2, 16, 128),  # whole blocks
        (3, 17, 129),  # one more than whole blocks, in N and D
        (2, 15, 513),
        (5, 33, 7),  # D below a block, several blocks of rows in several images
    ],
    ids=str,
)
def test_exact_on_small_integers(shape, dtype):
    x = exact_tokens(*shape, dtype=dtype)
    norms = squared_norms(x)
    assert norms.is_contiguous()
    assert torch.equal(norms, expected_norms(x))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 2),
        lambda x: x.transpose(0, 1),
        lambda x: x[:, ::2, ::3],
        lambda x: x[:, 1:, 1:],
        lambda x: x[:1].expand(4, -1, -1),
        lambda x: x[:, :1].expand(-1, 20, -1),
    ],
    ids=["features-first", "tokens-first", "steps", "offset", "one-image", "one-token"],
)
def test_any_strides(view):
    x = view(exact_tokens(3, 19, 37))
    assert torch.equal(squared_norms(x), expected_norms(x))


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (0, 0, 0)], ids=str)
def test_no_tokens(shape):
    norms = squared_norms(exact_tokens(*shape))
    assert norms.shape == shape[:2]


def test_no_features_is_zero():
    assert torch.equal(squared_norms(exact_tokens(2, 5, 0)), torch.zeros(2, 5, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_torch(dtype):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 21, 300, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
    truth = x.double().square().sum(-1)
    error = (squared_norms(x).double() - truth).abs().max()
    error_of_torch = (expected_norms(x).double() - truth).abs().max()
    rounding = torch.finfo(expected_norms(x).dtype).eps * truth.max()
    assert error <= 2 * torch.maximum(error_of_torch, rounding)


def test_sixteen_bit_sums_do_not_overflow():
    x = torch.full((1, 2, 64), 30000.0, dtype=torch.float16, device=DEVICE)
    assert torch.equal(squared_norms(x), expected_norms(x))


def test_a_non_finite_token_harms_no_other():
    x = exact_tokens(2, 20, 9)
    x[1, 3, 2] = float("nan")
    x[1, 4, 2] = float("inf")
    norms = squared_norms(x)
    assert norms[1, 3].isnan() and norms[1, 4] == float("inf")
    x[1, 3:5] = norms[1, 3:5] = 0
    assert torch.equal(norms, expected_norms(x))


@pytest.mark.parametrize("bytes_, block_d", [(8, 64), (4, 128), (2, 256)])
def test_a_warp_reads_512_bytes_of_a_row(bytes_, block_d):
    assert squared_norms_config(bytes_).block_d == block_d


TRITON_TYPE = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


def compile_for_hopper(dtype, divisible_by_16):
    config = squared_norms_config(dtype.itemsize)
    request = {
        "module": "setok_triton.density",
        "kernel": "squared_norms_fwd_kernel",
        "signature": {
            "p_x": f"*{TRITON_TYPE[dtype]}",
            "p_norms": "*fp64" if dtype == torch.float64 else "*fp32",
            "N": "i32",
            "D": "i32",
            "stride_b": "i32",
            "stride_n": "i32",
        },
        "constexprs": {"stride_d": 1, "BLOCK_N": config.block_n, "BLOCK_D": config.block_d},
        "divisible_by_16": divisible_by_16,
        "num_warps": config.num_warps,
    }
    child = subprocess.run(
        [sys.executable, Path(__file__).with_name("offline_compile.py")],
        input=json.dumps(request),
        text=True,
        capture_output=True,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        check=False,
    )
    assert child.returncode == 0, child.stderr
    report = json.loads(child.stdout)
    assert report["cubin_bytes"] > 0
    return report


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hopper_code_spills_nothing_and_loads_16_bytes(dtype):
    report = compile_for_hopper(dtype, ["p_x", "p_norms", "stride_b", "stride_n"])
    assert report["stack"] == report["spill_stores"] == report["spill_loads"] == 0
    assert ("v2.b64" if dtype == torch.float64 else "v4.b32") in report["ptx"]
    assert not {"N", "D"} & set(report["specialized"]), "every shape would be compiled anew"


@pytest.mark.slow
def test_hopper_code_of_unaligned_rows_spills_nothing():
    report = compile_for_hopper(torch.bfloat16, ["p_x", "p_norms"])
    assert report["stack"] == report["spill_stores"] == report["spill_loads"] == 0
