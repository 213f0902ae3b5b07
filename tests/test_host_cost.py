"""What each call costs the host on a GPU, exactly; and the host never waits for the device.

A change that makes a call cheaper lowers its row of the table; none may rise unseen. For small
batches these numbers are the time of a call: a launch or an allocation takes microseconds.
"""

import os

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("launches are those of the interpreter", allow_module_level=True)

import setok_kernels as sk
from helpers.fake_gpu import fake_gpu
from helpers.host_cost import counted
from setok_kernels.compiled import Compiled, mask_options
from setok_kernels.saved import saved_bytes

# What a fake tensor raises that has no value to give.
READS = (DataDependentOutputException, DynamicOutputShapeException)

# Allocations, operations of torch, launches on the device.
COSTS = {
    "cluster": (12, 40, 5),
    "cluster, masked": (12, 42, 5),
    "cluster, packed": (13, 42, 6),
    "cluster, learnable": (13, 39, 6),
    "cluster, importance and budget": (12, 43, 5),
    "cluster, replayed": (16, 46, 9),
    "cluster, many tokens": (31, 53, 97),
    "cluster, backward": (24, 42, 13),
    "cluster, backward with importance": (24, 44, 13),
    "merge, hard": (17, 22, 17),
    "merge, soft": (5, 9, 3),
    "merge, soft, backward": (6, 13, 3),
    "unmerge, hard": (2, 6, 2),
    "unmerge, soft": (2, 5, 2),
    "unmerge, soft, backward": (5, 8, 4),
    "dpc_knn": (28, 57, 24),
    "dpc_knn, importance": (28, 60, 24),
    "threshold_greedy": (16, 22, 14),
}


@pytest.fixture
def device(monkeypatch):
    with fake_gpu(monkeypatch, 0) as device:
        # The tool's own answer to a read is taken back: here a value that is read has none.
        monkeypatch.undo()
        yield device


def tokens(device, *shape):
    return torch.empty(*(shape or (4, 729, 64)), device=device, dtype=torch.bfloat16)


def packed(device):
    offsets = torch.empty(5, dtype=torch.int32, device=device)
    return tokens(device, 2000, 64), dict(cu_seqlens=offsets, max_seqlen=729)


def result(device):
    """Of a clustering of `tokens`, as the operation describes it; no kernel runs."""
    return Compiled("triton").cluster(tokens(device), None, None, None, sk.ClusterConfig(), None)


def learnable(device):
    numbers = dict(beta=0.1, bandwidth=0.5, temperature=0.1, offset=0.5)
    return {n: torch.full((), v, device=device) for n, v in numbers.items()}


def backward(out, device, importance=None):
    d, values = out.decisions, (out.masks, out.density, out.delta, out.score)
    x = tokens(device)
    options = mask_options(sk.ClusterConfig(), x)
    saved = torch.empty(saved_bytes(4 * 729, 4), dtype=torch.uint8, device=device)
    return lambda: torch.ops.setok.cluster_backward(
        *(x, None, importance, None, 729, d.knn, d.parent, d.seeds, d.counts),
        *(*values, *values, saved, *options),
    )


def calls(device):
    """By name; the arguments are made here, and cost nothing."""
    x, out = tokens(device), result(device)
    mask = torch.empty(4, 729, dtype=torch.bool, device=device)
    flat, images = packed(device)
    long = tokens(device, 2, 2100, 64)
    rows = tokens(device, 4, out.num_rows, 64)
    config = sk.ClusterConfig(**learnable(device))
    weights = torch.empty(4, 729, device=device)
    shares = (out.masks, out.labels, out.counts)
    guided = dict(importance=weights, num_clusters=torch.empty(4, dtype=torch.int64, device=device))
    of = dict(backend="triton")
    return {
        "cluster": lambda: sk.cluster_tokens(x, **of),
        "cluster, masked": lambda: sk.cluster_tokens(x, token_mask=mask, **of),
        "cluster, packed": lambda: sk.cluster_tokens(flat, **images, **of),
        "cluster, learnable": lambda: sk.cluster_tokens(x, config, **of),
        "cluster, importance and budget": lambda: sk.cluster_tokens(x, **guided, exact=True, **of),
        "cluster, replayed": lambda: sk.cluster_tokens(x, decisions=out.decisions, **of),
        "cluster, many tokens": lambda: sk.cluster_tokens(long, **of),
        "cluster, backward": backward(out, device),
        "cluster, backward with importance": backward(out, device, weights),
        "merge, hard": lambda: sk.merge_tokens(x, out, **of),
        "merge, soft": lambda: sk.merge_tokens(x, out, "soft", **of),
        "merge, soft, backward": lambda: torch.ops.setok.merge_backward(
            rows, x, *shares, None, None, 729, 1e-6, True
        ),
        "unmerge, hard": lambda: sk.unmerge_tokens(rows, out, **of),
        "unmerge, soft": lambda: sk.unmerge_tokens(rows, out, "soft", **of),
        "unmerge, soft, backward": lambda: torch.ops.setok.unmerge_backward(
            x, rows, *shares, None, 729, True
        ),
        "dpc_knn": lambda: sk.dpc_knn(x, 20, **of),
        "dpc_knn, importance": lambda: sk.dpc_knn(x, 20, importance=weights, **of),
        "threshold_greedy": lambda: sk.threshold_greedy(x, 0.5, **of),
    }


@pytest.mark.parametrize("name", COSTS)
def test_the_cost_of_a_call(name, device, monkeypatch):
    call = calls(device)[name]
    with counted(monkeypatch) as cost:
        call()
    assert cost.row == COSTS[name], cost
    assert not cost.waits


def test_every_kernel_of_a_clustering_is_counted(device, monkeypatch):
    call = calls(device)["cluster"]
    with counted(monkeypatch) as cost:
        call()
    assert set(cost.kernels.values()) == {1} and "image_fwd" in cost.kernels
    # Views cost the host a call, but no memory and no launch.
    assert cost.aten["slice.Tensor"] and not cost.aten_launches["slice.Tensor"]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: torch.ops.aten.nonzero(x > 0),
        lambda x: torch.ops.aten.masked_select(x, x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
    ],
    ids=["item", "bool", "nonzero", "mask", "equal", "unique"],
)
def test_a_read_is_noticed(read, device, monkeypatch):
    """The call of a backend that looks at its values does not come to its end."""
    x = tokens(device)
    monkeypatch.setattr("setok_triton.backend._flags", lambda valid: read(x))
    with counted(monkeypatch), pytest.raises(READS):
        sk.cluster_tokens(x, backend="triton")


@pytest.mark.parametrize("move", [torch.Tensor.cpu, lambda x: x.to("cpu", non_blocking=True)])
def test_a_copy_to_the_host_is_noticed(move, device, monkeypatch):
    with counted(monkeypatch) as cost:
        move(tokens(device))
    assert cost.waits
