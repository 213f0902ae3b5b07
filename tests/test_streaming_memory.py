"""The memory of images without kept rows: so many bytes a token, and nothing N x N."""

import os

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("launches are those of the interpreter", allow_module_level=True)

import setok_kernels as sk
from helpers.fake_gpu import fake_gpu
from helpers.host_cost import counted
from setok_kernels.saved import saved_bytes
from setok_triton.bands import slots_of
from setok_triton.stream import CANDIDATES


@pytest.fixture
def device(monkeypatch):
    with fake_gpu(monkeypatch, 0) as device:
        monkeypatch.undo()
        yield device


def bytes_of_results(images, tokens, k, clusters):
    """Masks, three values and labels, neighbours, parents, seeds, counts; what gradients need."""
    a_token = 4 * (clusters + 1) + 3 * 4 + 8 + 8 * k + 8
    return images * (tokens * a_token + 8 * clusters + 8) + saved_bytes(images * tokens, images)


def bytes_of_buffers(images, tokens, dim, k, clusters):
    """Of all buffers, whether in use at one time or not; tokens fill whole blocks.

    A token has its candidates, its distance to each likely seed, and a few numbers.
    """
    lists, rows = 8 * slots_of(k) + 4, 4 * (CANDIDATES + 1)
    spans = tokens // 32 * 12 * (clusters + 2)
    flags_scope_keys = 4 + 3 * 4 + 8 + 8 + 2 * 4 + 1
    sums = 64 * 8 * (dim + -(-dim // 128))
    numbers = 8 + 4 + 12 * (clusters + 2) + 4 * CANDIDATES + 8
    # Counts of three lists, and the maximum score, of images in fours.
    counts = 4 * 4 * -(-images // 4) * 4
    of_a_token = lists + rows + flags_scope_keys
    return images * (tokens * of_a_token + spans + sums + numbers) + counts + 8 + 16


@pytest.mark.parametrize("k, clusters", [(8, 64), (16, 30), (1, 6)])
@pytest.mark.parametrize("images, tokens", [(1, 16384), (1, 65536), (3, 4096)])
def test_bytes_by_formula(images, tokens, k, clusters, device, monkeypatch):
    dim = 1152
    x = torch.empty(images, tokens, dim, device=device, dtype=torch.bfloat16)
    config = sk.ClusterConfig(k=k, max_clusters=clusters)
    with counted(monkeypatch) as cost:
        sk.cluster_tokens(x, config, backend="triton")
    expected = bytes_of_results(images, tokens, k, clusters)
    expected += bytes_of_buffers(images, tokens, dim, k, clusters)
    assert cost.allocated == expected
    if tokens >= 16384:
        # 3 % of a float32 buffer of all pairs at 16384 tokens, and 0.7 % at 65536.
        assert cost.allocated < 0.05 * (4 * 16384 * tokens)
