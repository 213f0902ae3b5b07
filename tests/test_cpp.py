"""What only the compiled backend can get wrong: sizes, regimes, threads, operations of its own."""

import dataclasses
import threading

import pytest
import torch

import setok_kernels as sk
from helpers.clusterings import assert_bit_equal
from helpers.pairwise import pairwise
from setok_kernels import compiled, dispatch, testing

pytestmark = pytest.mark.skipif(
    sk.backends()["cpp"] is not None, reason="the compiled module is not there"
)

REGIMES = ["dense", "streaming"]
CONFIGS = {
    "default": sk.ClusterConfig(max_clusters=16),
    "paper": sk.ClusterConfig.paper(max_clusters=9),
    # More neighbours than are ranked by counting, and than there are groups to bound them.
    "many": sk.ClusterConfig(
        max_clusters=16, k=70, kernel="laplacian", alpha="kernel", include_self=True
    ),
    "some": sk.ClusterConfig(max_clusters=8, k=20, kernel="epanechnikov", min_mass=0.5),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def cluster(x, config, **kwargs):
    return sk.cluster_tokens(x, config, backend="cpp", **kwargs)


@pytest.mark.parametrize(
    "regime, config, dtype, shape",
    pairwise(
        regime=REGIMES,
        config=CONFIGS.values(),
        dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
        shape=[(300, 64), (729, 96), (1100, 37), (120, 800)],
    ),
    indirect=["regime"],
)
def test_many_tokens(regime, config, dtype, shape):
    """Several panels, tiles and blocks of features, the last ragged; a replay changes no bit."""
    x = testing.planted_clusters(2, *shape, 9, noise=0.3, dtype=dtype)[0]
    out = testing.check_backend("cpp", x, config)
    assert_bit_equal(cluster(x, config, decisions=out.decisions), out)


@pytest.mark.parametrize("regime", REGIMES, indirect=True)
@pytest.mark.parametrize("distinct", [True, False])
def test_more_seeds_than_candidate_rows(regime, distinct):
    """Rows of candidates are computed again and again; with equal seeds, some are used twice."""
    x = testing.vit_like_tokens(1, 600, 24)
    config = sk.ClusterConfig(k=3, max_clusters=100, stop_residual=0.0, distinct_seeds=distinct)
    out = testing.check_backend("cpp", x, config)
    assert out.counts.tolist() == [100]
    assert_bit_equal(cluster(x, config, decisions=out.decisions), out)


@pytest.mark.parametrize(
    "regime, config, kind, masked",
    pairwise(
        regime=REGIMES,
        config=CONFIGS.values(),
        kind=["integers", "duplicates", "one hot", "equal"],
        masked=[False, True],
    ),
    indirect=["regime"],
)
def test_many_exact_tokens(regime, config, kind, masked):
    x = {
        "integers": lambda: testing.integer_tokens(2, 600, 30, high=2),
        "duplicates": lambda: testing.duplicate_tokens(2, 700, 24, distinct=50),
        "one hot": lambda: testing.one_hot_tokens(2, 600, 40),
        "equal": lambda: torch.full((2, 600, 50), 0.1),
    }[kind]()
    mask = None
    if masked:
        mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(0)) > 0.2
    testing.check_backend("cpp", x, config, token_mask=mask, exact=True)


def test_duplicates_in_different_panels(regime):
    base = torch.randn(1, 9, 1152, generator=torch.Generator().manual_seed(0))
    out = cluster(base[:, torch.arange(729) % 9], sk.ClusterConfig(k=7))
    assert (out.density == 1).all()
    assert out.decisions.knn[0, 700].tolist() == [7, 16, 25, 34, 43, 52, 61]
    assert (out.decisions.parent[0, 9:] < 9).all() and (out.delta[0, 9:] == 0).all()


@pytest.mark.parametrize("images", [1, 3])
def test_the_number_of_threads_changes_no_bit(regime, threads, images):
    x = testing.vit_like_tokens(images, 600, 130)
    config = sk.ClusterConfig(max_clusters=12)
    threads(1)
    expected = cluster(x, config)
    for count in (2, 4):
        threads(count)
        assert_bit_equal(cluster(x, config), expected)


def test_a_batch_is_a_loop_over_its_images(regime):
    x = testing.vit_like_tokens(5, 300, 70)
    config = sk.ClusterConfig(max_clusters=12)
    out = cluster(x, config)
    for b in range(5):
        alone = cluster(x[b : b + 1], config)
        assert torch.equal(alone.masks[0], out.masks[b])
        assert torch.equal(alone.decisions.knn[0], out.decisions.knn[b])


def test_concurrent_calls(regime):
    x = testing.vit_like_tokens(2, 300, 70)
    config = sk.ClusterConfig(max_clusters=12)
    expected, failures = cluster(x, config), []

    def work():
        try:
            for _ in range(5):
                assert_bit_equal(cluster(x, config), expected)
        except AssertionError as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_packed_images_of_many_sizes(config):
    lengths = [300, 0, 1, 17, 120, 33]
    packed, cu_seqlens, padded, mask = testing.ragged_batch(lengths, 40, exact=True)
    for offsets in (cu_seqlens, cu_seqlens.long()):
        testing.check_backend("cpp", packed, config, cu_seqlens=offsets, exact=True)
    testing.check_backend("cpp", padded, config, token_mask=mask, exact=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [1, 37, 96, 200])
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_merging_many_tokens(mode, dim, weighted, threads):
    """Several panels of tokens, features and rows, ragged at every end; any number of threads."""
    packed, cu_seqlens, padded, mask = testing.ragged_batch([300, 0, 1, 45, 120], dim)
    padded[0, 7] = packed[7] = torch.nan
    generator = torch.Generator().manual_seed(0)
    for x, kwargs in ((packed, {"cu_seqlens": cu_seqlens}), (padded, {"token_mask": mask})):
        out = cluster(x, sk.ClusterConfig(max_clusters=40, stop_residual=0.0), **kwargs)
        weights = torch.rand(x.shape[:-1], generator=generator) if weighted else None
        merged = sk.merge_tokens(x, out, mode, weights, backend="cpp")
        expected = sk.merge_tokens(x, out, mode, weights, backend="reference")
        torch.testing.assert_close(merged, expected)
        spread = sk.unmerge_tokens(merged, out, mode, backend="cpp")
        expected = sk.unmerge_tokens(merged, out, mode, backend="reference")
        torch.testing.assert_close(spread, expected)
        threads(1)
        assert torch.equal(sk.merge_tokens(x, out, mode, weights, backend="cpp"), merged)
        assert torch.equal(sk.unmerge_tokens(merged, out, mode, backend="cpp"), spread)
        threads(2)


def test_replayed_decisions_that_no_clustering_makes():
    """Absent seeds in the middle, seeds behind the residual: as the reference has it."""
    x = testing.planted_clusters(1, 40, 6, 3, noise=0.3)[0]
    config = sk.ClusterConfig(max_clusters=5)
    d = cluster(x, config).decisions
    for seeds, count in (([3, -1, 7, -1, -1], 4), ([3, 4, 5, 6, 7], 2), ([-1] * 5, 0)):
        forced = dataclasses.replace(d, seeds=torch.tensor([seeds]), counts=torch.tensor([count]))
        out = cluster(x, config, decisions=forced)
        expected = sk.cluster_tokens(x, config, decisions=forced, backend="reference")
        torch.testing.assert_close(out.masks, expected.masks)
        assert torch.equal(out.masks.argmax(1), out.labels)


def test_the_operations_too_ignore_seeds_behind_the_last():
    """`cluster_tokens` has cut them off already; others may not."""
    x = testing.planted_clusters(2, 40, 6, 3, noise=0.3)[0]
    config = sk.ClusterConfig(max_clusters=5, stop_residual=0.0)
    d = cluster(x, config).decisions
    lower = torch.tensor([2, 0])
    ops, options = torch.ops.setok, compiled.mask_options(config, x)
    grad = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(0))
    made, grads = [], []
    for seeds in (d.seeds, dataclasses.replace(d, counts=lower).cut().seeds):
        known, images = (d.knn, d.parent, seeds, lower), (None, 40)
        loop = (config.k, config.max_clusters, True, False, False, 0.0, 0.0, 3072)
        masks, _, *values = ops.cluster(x, *[None] * 3, *images, *known, *options, *loop)[:5]
        made.append(masks)
        values = (masks, *values, grad, None, None, None)
        given = (*images, *known, *values, None, *options)
        grads.append(ops.cluster_backward(x, None, None, *given)[0])
    torch.testing.assert_close(made[0].sum(1), torch.ones(2, 40))
    assert torch.equal(*made) and torch.equal(*grads) and grads[0][0].any()


def test_only_cpu_tensors():
    assert not dispatch.can_run_cpp(torch.device("meta"))
    with pytest.raises(RuntimeError, match="expected CPU tensors, got meta"):
        dispatch.can_run_cpp(torch.device("meta"), raise_error=True)
