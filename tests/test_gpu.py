"""The Triton backend on a GPU, at real sizes: `TRITON_INTERPRET=0 pytest -m gpu`."""

import dataclasses
import os

import pytest
import torch

import setok_kernels as sk
from setok_kernels import compiled, testing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] != "0",
        reason="needs a CUDA device and TRITON_INTERPRET=0",
    ),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CONFIGS = {
    "default": sk.ClusterConfig(),
    "paper": sk.ClusterConfig.paper(),
    "kernel": sk.ClusterConfig(k=3, kernel="laplacian", alpha="kernel", include_self=True),
    "mass": sk.ClusterConfig(k=64, kernel="epanechnikov", min_mass=0.5, distance_scale=2.0),
}
# Odd in every tile. These come first, and compute-sanitizer runs them too, which slows them a
# hundredfold: `python bench/run.py --suite gpu --only racecheck memcheck`.
SMALL = 150


@pytest.mark.parametrize("streaming", [False, True], ids=["dense", "streaming"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_images(dtype, streaming, monkeypatch):
    if streaming:
        monkeypatch.setitem(compiled.DENSE_LIMITS, "triton", 0)
    x = testing.integer_tokens(2, SMALL, 65).cuda()
    testing.check_backend("triton", x, CONFIGS["default"], exact=True)
    x = testing.vit_like_tokens(3, SMALL, 64).to(dtype).cuda()
    mask = torch.rand(3, SMALL, generator=torch.Generator().manual_seed(0)).cuda() > 0.2
    testing.check_backend("triton", x, CONFIGS["kernel"], token_mask=mask)


def test_small_images_packed():
    x = testing.integer_tokens(2, SMALL, 33).cuda()
    given = dict(cu_seqlens=torch.tensor([0, 37, 37, SMALL]).cuda(), max_seqlen=SMALL - 37)
    for config in CONFIGS.values():
        out, expected = (
            sk.cluster_tokens(x[0], config, **given, backend=name)
            for name in ("triton", "reference")
        )
        assert torch.equal(out.labels, expected.labels)
        torch.testing.assert_close(out.masks, expected.masks, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_small_gradients(config):
    x = testing.vit_like_tokens(2, SMALL, 64).cuda()
    testing.assert_replayed_gradients(x, config, "triton")


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_small_merging(mode):
    x = testing.integer_tokens(2, SMALL, 65).cuda()
    out = sk.cluster_tokens(x, CONFIGS["default"], backend="triton")
    weights = torch.rand(2, SMALL, generator=torch.Generator().manual_seed(1)).cuda()
    for w in (None, weights):
        merged, expected = (
            sk.merge_tokens(x, out, mode, w, backend=name) for name in ("triton", "reference")
        )
        torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
        spread, expected = (
            sk.unmerge_tokens(merged, out, mode, backend=name) for name in ("triton", "reference")
        )
        torch.testing.assert_close(spread, expected, rtol=1e-4, atol=1e-4)


def test_small_hard_clusterings():
    x = testing.integer_tokens(2, SMALL, 65).cuda()
    for options in (dict(num_clusters=20), dict(threshold=0.5, order="index", cap="eccentricity")):
        out, expected = (sk.dpc_knn(x, **options, backend=name) for name in ("triton", "reference"))
        testing.assert_same_hard_clusters(out, expected)
    x = testing.one_hot_tokens(2, SMALL, 40).cuda()
    out, expected = (sk.threshold_greedy(x, 0.5, backend=name) for name in ("triton", "reference"))
    testing.assert_same_hard_clusters(out, expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("tokens", [729, 2916])
def test_exact_tokens(config, tokens):
    for x in (
        testing.integer_tokens(2, tokens, 65).cuda(),
        testing.duplicate_tokens(2, tokens, 1152, distinct=99).cuda(),
        testing.one_hot_tokens(2, tokens, 40).cuda(),
    ):
        testing.check_backend("triton", x, config, exact=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [729, 2916])
def test_real_tokens(dtype, tokens):
    x = testing.vit_like_tokens(3, tokens, 1152).to(dtype).cuda()
    mask = torch.rand(3, tokens, generator=torch.Generator().manual_seed(0)).cuda() > 0.2
    out = testing.check_backend("triton", x, CONFIGS["default"], token_mask=mask)
    again = sk.cluster_tokens(
        x, CONFIGS["default"], token_mask=mask, decisions=out.decisions, backend="triton"
    )
    assert torch.equal(again.masks, out.masks) and torch.equal(again.score, out.score)


@pytest.mark.parametrize("tokens", [40, 729, 2916, 5000])
def test_hard_clusterings_of_exact_tokens(tokens):
    x = testing.integer_tokens(2, tokens, 65).cuda()
    mask = torch.rand(2, tokens, generator=torch.Generator().manual_seed(0)).cuda() > 0.2
    for options in (
        dict(num_clusters=min(100, tokens)),
        dict(threshold=0.5, order="index", cap="eccentricity"),
    ):
        out, expected = (
            sk.dpc_knn(x, token_mask=mask, backend=name, **options)
            for name in ("triton", "reference")
        )
        for name in ("labels", "centres", "counts", "knn", "parent"):
            assert torch.equal(getattr(out, name), getattr(expected, name)), name
        torch.testing.assert_close(out.score, expected.score, rtol=1e-5, atol=0)
    # The cosine of two unit vectors of the standard basis is exact.
    x = testing.one_hot_tokens(2, tokens, 40).cuda()
    out, expected = (
        sk.threshold_greedy(x, 0.5, token_mask=mask, backend=name)
        for name in ("triton", "reference")
    )
    for name in ("labels", "centres", "counts"):
        assert torch.equal(getattr(out, name), getattr(expected, name)), name


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [729, 16384])
def test_merging(tokens, dtype, mode):
    x = testing.vit_like_tokens(2, tokens, 1152).to(dtype).cuda()
    out = sk.cluster_tokens(x, sk.ClusterConfig(max_clusters=100), backend="triton")
    weights = torch.rand(2, tokens, device="cuda", generator=torch.Generator("cuda"))
    for w in (None, weights):
        merged = sk.merge_tokens(x, out, mode, w, backend="triton")
        wide = sk.merge_tokens(x.double(), out, mode, w, backend="reference")
        torch.testing.assert_close(
            merged.double(), wide, rtol=2 * torch.finfo(dtype).eps, atol=1e-4
        )
        spread = sk.unmerge_tokens(merged, out, mode, backend="triton")
        wide = sk.unmerge_tokens(merged.double(), out, mode, backend="reference")
        torch.testing.assert_close(
            spread.double(), wide, rtol=2 * torch.finfo(dtype).eps, atol=1e-4
        )


def test_very_many_tokens():
    """The reference would need 1 GB for its matrix and more for its sort: float64 is left out."""
    x = testing.vit_like_tokens(1, 16384, 1152).cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = sk.cluster_tokens(x, CONFIGS["default"], backend="triton")
    assert torch.cuda.max_memory_allocated() - before < 64 * 2**20
    testing.assert_invariants(x, out, CONFIGS["default"])
    norm = x.square().sum(2)
    for i in (0, 5000, 16383):
        d = norm[0] + norm[0, i] - 2 * (x[0] @ x[0, i])
        d[i] = torch.inf
        nearest = out.decisions.knn[0, i]
        assert d[nearest].max() <= d.topk(8, largest=False).values.max() * (1 + 1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gradients(config, dtype):
    x = testing.vit_like_tokens(2, 729, 1152).to(dtype).cuda()
    testing.assert_replayed_gradients(x, config, "triton")


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("tokens", [729, 16384])
def test_gradients_of_merging(tokens, mode):
    x = testing.vit_like_tokens(1, tokens, 1152).cuda()
    out = sk.cluster_tokens(x, CONFIGS["default"], backend="triton")
    found = {}
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
        leaves = [t.to(dtype).requires_grad_() for t in (x, out.masks)]
        given = dataclasses.replace(out, masks=leaves[1])
        merged = sk.merge_tokens(leaves[0], given, mode, backend=backend)
        spread = sk.unmerge_tokens(merged, given, mode, backend=backend)
        loss = spread.square().mean()
        found[dtype] = torch.autograd.grad(loss, leaves, allow_unused=True)
    for got, truth in zip(*found.values(), strict=True):
        if truth is not None and got is not None:
            error = (got.double() - truth).abs().max()
            assert error <= 1e-4 * truth.abs().max()


def test_gradients_of_very_many_tokens_repeat():
    x = testing.vit_like_tokens(1, 16384, 1152).cuda().requires_grad_()
    sk.cluster_tokens(x[:, :64], CONFIGS["default"], backend="triton").masks.sum().backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = sk.cluster_tokens(x, CONFIGS["default"], backend="triton")
    (first,) = torch.autograd.grad(out.masks.square().sum(), x, retain_graph=True)
    # The gradient, the masks with theirs, the seeds' rows and mixtures; an N x N buffer is 1 GB.
    assert torch.cuda.max_memory_allocated() - before < 512 * 2**20
    for _ in range(9):
        assert torch.equal(
            torch.autograd.grad(out.masks.square().sum(), x, retain_graph=True)[0], first
        )


def test_the_host_never_waits():
    x = torch.randn(4, 729, 1152, device="cuda", dtype=torch.bfloat16).requires_grad_()
    packed, offsets = x.detach().flatten(0, 1), torch.arange(5, device="cuda").int() * 729

    def run():
        out = sk.cluster_tokens(x, backend="triton")
        for mode in ("soft", "hard"):
            merged = sk.merge_tokens(x, out, mode, backend="triton")
            spread = sk.unmerge_tokens(merged, out, mode, backend="triton")
            spread.sum().backward(retain_graph=True)
        given = dict(cu_seqlens=offsets, max_seqlen=729, backend="triton")
        sk.dpc_knn(packed, threshold=0.5, cap="eccentricity", order="index", **given)
        sk.dpc_knn(packed, num_clusters=64, **given)
        sk.threshold_greedy(packed, 0.5, **given)

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tokens", [729, 2916])
def test_graph_replays_on_new_tokens(tokens):
    x = testing.vit_like_tokens(2, tokens, 64).cuda()
    sk.cluster_tokens(x, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sk.cluster_tokens(x, backend="triton")
    x.copy_(testing.vit_like_tokens(2, tokens, 64, seed=1))
    graph.replay()
    expected = sk.cluster_tokens(x.clone(), backend="triton")
    assert torch.equal(out.masks, expected.masks) and torch.equal(out.labels, expected.labels)


HARD = {
    "clusters": dict(num_clusters=64, k=5),
    "threshold": dict(threshold=0.3, k=8, order="index", cap="eccentricity", min_clusters=9),
}


@pytest.mark.parametrize("options", HARD.values(), ids=HARD)
@pytest.mark.parametrize("tokens", [729, 2916])
def test_density_peaks(tokens, options):
    for x in (
        testing.integer_tokens(2, tokens, 65).cuda(),
        testing.duplicate_tokens(2, tokens, 1152, distinct=99).cuda(),
    ):
        out = sk.dpc_knn(x, **options, backend="triton")
        expected = sk.dpc_knn(x, **options, backend="reference")
        testing.assert_same_hard_clusters(out, expected)
    for dtype in DTYPES:
        x = testing.vit_like_tokens(3, tokens, 1152).to(dtype).cuda()
        mask = torch.rand(3, tokens, generator=torch.Generator().manual_seed(0)).cuda() > 0.2
        out = sk.dpc_knn(x, **options, token_mask=mask, backend="triton")
        testing.assert_valid_density_peaks(x, out, **options, token_mask=mask)


@pytest.mark.parametrize("threshold", [0.2, 0.65, 0.9])
@pytest.mark.parametrize("tokens", [729, 16384])
def test_threshold_greedy(tokens, threshold):
    x = testing.one_hot_tokens(2, tokens, 300).cuda()
    x[0, :50] = 0
    out = sk.threshold_greedy(x, threshold, backend="triton")
    expected = sk.threshold_greedy(x[:, :729], threshold, backend="reference")
    first = sk.threshold_greedy(x[:, :729], threshold, backend="triton")
    testing.assert_same_hard_clusters(first, expected)
    directions = [int(image.any(0).sum()) for image in x]
    assert out.counts.tolist() == [directions[0] + 50, directions[1]]
    x = testing.vit_like_tokens(2, 729, 1152).cuda()
    out = sk.threshold_greedy(x, threshold, backend="triton")
    testing.assert_valid_threshold_greedy(x, out, threshold)
