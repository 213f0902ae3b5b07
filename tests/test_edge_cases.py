"""Empty, degenerate, non-finite and oddly laid out input."""

import itertools

import pytest
import torch

import setok_kernels as sk
from helpers.pairwise import pairwise
from setok_kernels import testing

CONFIGS = [
    sk.ClusterConfig(max_clusters=5),
    sk.ClusterConfig.paper(max_clusters=5),
    sk.ClusterConfig(max_clusters=5, k=3, kernel="laplacian", alpha="kernel", include_self=True),
]


@pytest.fixture(params=CONFIGS, ids=["default", "paper", "kernel"])
def config(request):
    return request.param


EMPTY = [(2, 0, 3), (0, 4, 3), (0, 0, 3), (0, 2, 3, 3), (2, 0, 3, 3)]


def test_empty(backend, regime):
    for shape, config in zip(EMPTY, itertools.cycle(CONFIGS), strict=False):
        x = torch.zeros(shape)
        out = sk.cluster_tokens(x, config, backend=backend)
        batch, tokens = shape[0], torch.Size(shape[1:-1]).numel()
        assert out.masks.shape == (batch, 6, tokens)
        assert out.labels.shape == (batch, tokens)
        assert out.decisions.knn.shape == (batch, tokens, config.k)
        assert out.decisions.seeds.eq(-1).all() and out.counts.eq(0).all()
        again = sk.cluster_tokens(x, config, decisions=out.decisions, backend=backend)
        assert torch.equal(again.masks, out.masks)
        for mode in ("hard", "soft"):
            merged = sk.merge_tokens(x, out, mode, backend=backend)
            assert torch.equal(merged, torch.zeros(batch, 6, 3))
            assert sk.unmerge_tokens(merged, out, mode, backend=backend).shape == shape
        assert out.pack(merged).tokens.shape == (0, 3)


def test_empty_packed(backend, regime):
    for lengths, config in zip(
        ([], [0], [0, 0], [0, 3, 0]), itertools.cycle(CONFIGS), strict=False
    ):
        packed, cu_seqlens, _, _ = testing.ragged_batch(lengths, 3, exact=True)
        out = testing.check_backend(backend, packed, config, cu_seqlens=cu_seqlens, exact=True)
        merged = sk.merge_tokens(packed, out, backend=backend)
        assert merged.shape == (len(lengths), 6, 3)
        assert sk.unmerge_tokens(merged, out, backend=backend).shape == packed.shape


def test_one_token(backend, config):
    out = testing.check_backend(backend, torch.ones(1, 1, 4), config, exact=True)
    assert out.density.item() == 1 and out.delta.item() == 0 and out.score.item() == 0
    assert out.decisions.parent.item() == -1
    assert out.decisions.knn[0, 0].tolist() == [0 if config.include_self else -1] + [-1] * (
        config.k - 1
    )
    assert out.decisions.seeds[0, 0] == 0


def test_one_token_stops_at_its_own_residual(backend):
    # alpha is sigmoid(1) every time: the scope goes 1, 0.269, 0.072.
    config = sk.ClusterConfig.paper(stop_residual=0.2)
    out = sk.cluster_tokens(torch.ones(1, 1, 4), config, backend=backend)
    assert out.counts.item() == 2


def test_more_neighbours_than_tokens(backend):
    x = torch.tensor([[[0.0], [1.0], [3.0]]])
    config = sk.ClusterConfig(k=10, max_clusters=2, distance_scale=1.0)
    out = testing.check_backend(backend, x, config, exact=True)
    assert out.decisions.knn[0].tolist() == [
        [1, 2] + [-1] * 8,
        [0, 2] + [-1] * 8,
        [1, 0] + [-1] * 8,
    ]
    torch.testing.assert_close(out.density[0], torch.exp(-torch.tensor([5.0, 2.5, 6.5])))


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7e8, -1e-20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_tokens_are_one_cluster(backend, value, dtype):
    x = torch.full((2, 9, 7), value, dtype=dtype)
    out = testing.check_backend(backend, x, sk.ClusterConfig(k=2, max_clusters=5), exact=True)
    assert out.counts.tolist() == [1, 1]
    assert out.decisions.seeds[:, 0].tolist() == [0, 0]
    assert (out.density == 1).all() and (out.delta == 0).all() and (out.labels == 0).all()
    assert out.decisions.knn[0, 4].tolist() == [0, 1]


def test_equal_tokens_do_not_depend_on_the_matrix_product(monkeypatch):
    """The scale of an image without variance is 0, so noise of the Gram matrix decides nothing."""
    from setok_kernels.reference import density

    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 9, 9, generator=generator)
    monkeypatch.setattr(density, "squared_distances", lambda x: noise)
    out = sk.cluster_tokens(torch.full((1, 9, 7), 0.1), backend="reference")
    assert (out.density == 1).all() and (out.delta == 0).all()
    assert out.decisions.knn[0, 4, :2].tolist() == [0, 1]
    assert out.counts.item() == 1


def test_scale_is_exact_far_from_the_origin():
    """Sums relative to one token: a common offset costs no bit of the variance."""
    from setok_kernels.reference import density

    x = testing.integer_tokens(2, 30, 7, dtype=torch.float64)
    ok = torch.arange(30) != torch.tensor([[0], [7]])
    sigma = density.variance_scale(x, ok)
    assert torch.equal(density.variance_scale(x + 2.0**30, ok), sigma)


def test_all_masked(backend, config):
    mask = torch.tensor([[False] * 4, [True] * 4])
    x = testing.integer_tokens(2, 4, 3)
    out = testing.check_backend(backend, x, config, token_mask=mask, exact=True)
    assert out.counts[0] == 0 and out.counts[1] > 0
    assert (out.masks[0] == 0).all() and (out.labels[0] == -1).all()
    merged = sk.merge_tokens(x, out, backend=backend)
    assert (merged[0] == 0).all()
    assert out.pack(merged).cu_seqlens[1] == 0


@pytest.mark.parametrize(
    "config, bad, dtype",
    pairwise(
        config=CONFIGS,
        bad=[torch.nan, torch.inf, -torch.inf],
        dtype=[torch.float32, torch.bfloat16],
    ),
)
def test_non_finite_tokens_are_residual_and_harm_nobody(backend, config, bad, dtype):
    x = testing.integer_tokens(2, 12, 3, dtype=dtype)
    broken = x.clone()
    broken[0, 5, 1] = bad
    keep = torch.arange(12) != 5
    out = testing.check_backend(backend, broken, config, exact=True)
    clean = sk.cluster_tokens(x[:, keep], config, backend=backend)
    assert torch.equal(out.masks[0][:, keep], clean.masks[0])
    assert torch.equal(out.counts[0], clean.counts[0])
    assert torch.equal(out.labels[0][keep], clean.labels[0])
    assert out.labels[0, 5] == out.counts[0]
    assert out.masks[0, out.counts[0], 5] == 1
    for mode in ("hard", "soft"):
        merged = sk.merge_tokens(broken, out, mode, backend=backend)
        assert merged.isfinite().all()
        expected = sk.merge_tokens(x[:, keep], clean, mode, backend=backend)
        torch.testing.assert_close(merged[0], expected[0])


def test_gradient_of_a_non_finite_token_is_zero(backend):
    x = testing.planted_clusters(1, 12, 3, 3)[0]
    x[0, 5] = torch.nan
    x.requires_grad_()
    out = sk.cluster_tokens(x, backend=backend)
    (out.masks.square().sum() + sk.merge_tokens(x, out, "soft").square().sum()).backward()
    assert x.grad.isfinite().all() and (x.grad[0, 5] == 0).all() and (x.grad != 0).any()


def test_only_non_finite_tokens(backend, config):
    out = testing.check_backend(backend, torch.full((1, 3, 2), torch.nan), config)
    assert out.counts.tolist() == [0] and out.labels.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    "config, magnitude, dtype",
    pairwise(config=CONFIGS, magnitude=[1e-30, 1e15], dtype=[torch.float32, torch.float64]),
)
def test_extreme_magnitudes(backend, config, magnitude, dtype):
    x = testing.planted_clusters(2, 20, 6, 3, dtype=dtype)[0] * magnitude
    learnable = {
        n: torch.tensor(float(getattr(config, n)), requires_grad=True)
        for n in ("bandwidth", "beta")
    }
    tuned = sk.ClusterConfig(**(config.to_dict() | learnable))
    x.requires_grad_()
    out = sk.cluster_tokens(x, tuned, backend=backend)
    testing.assert_invariants(x, out, config)
    out.masks[:, 0].sum().backward()
    for leaf in (x, *learnable.values()):
        assert leaf.grad.isfinite().all()
    if config.distance_scale == "variance":
        plain = sk.cluster_tokens(x.detach() / magnitude, config, backend=backend)
        assert (
            torch.equal(plain.labels, out.labels) and plain.counts.tolist() == out.counts.tolist()
        )
    else:
        expected = (x[0, 0] - x[0]).detach().double().square().sum(1) / 6
        parent = out.decisions.parent[0, 0]
        want = expected.max() if parent < 0 else expected[parent]
        got = out.delta[0, 0].double()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-37)


def test_mixed_magnitudes_stay_finite(backend, config):
    x = testing.integer_tokens(1, 8, 3)
    x[0, 3] = 3e38
    out = sk.cluster_tokens(x, config, backend=backend)
    testing.assert_invariants(x, out, config)


def test_duplicates_are_at_distance_zero(backend):
    base = torch.randn(1, 5, 37, generator=torch.Generator().manual_seed(0))
    x = base[:, torch.arange(40) % 5]
    config = sk.ClusterConfig(k=7)
    out = sk.cluster_tokens(x, config, backend=backend)
    assert (out.density == 1).all()
    assert out.decisions.knn[0, 12].tolist() == [2, 7, 17, 22, 27, 32, 37]
    assert out.decisions.parent[0, 12] == 2 and out.delta[0, 12] == 0


def test_ties_go_to_the_lowest_index(backend):
    # Corners of a square: every token has two neighbours at distance 1 and one at 2.
    x = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]])
    config = sk.ClusterConfig(k=1, max_clusters=2, distance_scale=1.0, stop_residual=0.0)
    out = testing.check_backend(backend, x, config, exact=True)
    assert out.decisions.knn[0, :, 0].tolist() == [1, 0, 0, 1]
    assert out.decisions.parent[0].tolist() == [-1, 0, 0, 1]
    # All densities and, but for the top token, all deltas are equal; the first seed's scope then
    # leaves most to the opposite corner.
    assert out.decisions.seeds[0].tolist() == [0, 3]


@pytest.mark.parametrize(
    "config, dtype", list(zip(CONFIGS, [torch.float32, torch.float16, torch.float32], strict=True))
)
def test_strides_do_not_matter(backend, config, dtype):
    x = testing.integer_tokens(2, 10, 6, dtype=dtype)
    expected = sk.cluster_tokens(x, config, backend=backend)
    variants = {
        "channels first": x.mT.contiguous().mT,
        "every other": torch.stack([x, x + 1], 3).reshape(2, 10, 12)[..., ::2],
        "tokens first": x.transpose(0, 1).contiguous().transpose(0, 1),
    }
    for name, view in variants.items():
        out = sk.cluster_tokens(view, config, backend=backend)
        assert torch.equal(out.masks, expected.masks), name
    wide = x[:1].expand(3, -1, -1)
    out = sk.cluster_tokens(wide, config, backend=backend)
    assert torch.equal(out.masks[2], expected.masks[0])


def test_grid(backend, config):
    x = testing.integer_tokens(2, 12, 5)
    grid = x.reshape(2, 3, 4, 5)
    out = sk.cluster_tokens(grid, config, backend=backend)
    flat = sk.cluster_tokens(x, config, backend=backend)
    assert out.grid == (3, 4) and flat.grid is None
    assert torch.equal(out.masks, flat.masks)
    mask = torch.arange(12).expand(2, -1) < 7
    masked = sk.cluster_tokens(grid, config, token_mask=mask.reshape(2, 3, 4), backend=backend)
    assert torch.equal(masked.labels == -1, ~mask)
    merged = sk.merge_tokens(grid, out, backend=backend)
    assert torch.equal(merged, sk.merge_tokens(x, flat, backend=backend))
    assert sk.unmerge_tokens(merged, out, backend=backend).shape == grid.shape


def test_masked_tokens_have_no_say_in_the_range(backend):
    x = testing.planted_clusters(1, 20, 6, 3)[0]
    mask = torch.arange(20)[None] < 15
    tiny = torch.where(mask[..., None], x * 2.0**-100, 1.0)
    out = sk.cluster_tokens(x, token_mask=mask, backend=backend)
    assert torch.equal(sk.cluster_tokens(tiny, token_mask=mask, backend=backend).masks, out.masks)


@pytest.mark.backends("reference", "cpp")
@pytest.mark.parametrize("exponent", [-300, 250])
def test_range_of_float64(backend, exponent):
    x = testing.planted_clusters(1, 20, 6, 3, dtype=torch.float64)[0]
    out = sk.cluster_tokens(x, backend=backend)
    scaled = sk.cluster_tokens(x * 2.0**exponent, backend=backend)
    assert torch.equal(scaled.masks, out.masks)


def test_distances_at_the_end_of_the_range(backend):
    """The gradient of the bandwidth has d / h**2, which overflows before d does."""
    bandwidth = torch.tensor(0.1, requires_grad=True)
    x = torch.tensor([[[0.0], [1.0], [1e19]]], requires_grad=True)
    config = sk.ClusterConfig(k=1, distance_scale=1.0, bandwidth=bandwidth, score_norm=None)
    out = sk.cluster_tokens(x, config, backend=backend)
    testing.assert_invariants(x, out, config)
    out.masks.square().sum().backward()
    assert x.grad.isfinite().all() and bandwidth.grad.isfinite()


def test_subnormal_scores_stay_raw(backend):
    x = testing.integer_tokens(1, 9, 3)
    out = sk.cluster_tokens(x, sk.ClusterConfig(distance_scale=1e-41), backend=backend)
    assert 0 < out.score.max() < torch.finfo(torch.float32).tiny
    assert torch.equal(out.score, out.density * out.delta)


@pytest.mark.backends("reference", "cpp")
def test_thresholds_are_inclusive(backend):
    """A mass of exactly min_mass is enough, a mean scope of exactly stop_residual stops."""
    one = torch.ones(1, 1, 2, dtype=torch.float64)
    always = dict(alpha="kernel", distinct_seeds=False, max_clusters=3)  # alpha is 0.99
    for changes, counts in [
        (dict(min_mass=0.99, stop_residual=0.5), 1),
        (dict(min_mass=0.991, stop_residual=0.5), 0),
        (dict(stop_residual=1 - 0.99), 1),
        (dict(stop_residual=0.0099), 2),
    ]:
        config = sk.ClusterConfig(**always, **changes)
        assert sk.cluster_tokens(one, config, backend=backend).counts.item() == counts


def test_distinct_seeds_and_repeats(backend):
    x = testing.integer_tokens(1, 3, 2, seed=4)
    many = sk.ClusterConfig(max_clusters=9, stop_residual=0.0)
    out = sk.cluster_tokens(x, many, backend=backend)
    assert out.counts.item() == 3, "no token is eligible a second time"
    assert sorted(out.decisions.seeds[0, :3].tolist()) == [0, 1, 2]
    repeat = sk.ClusterConfig.paper(max_clusters=9, stop_residual=0.0)
    out = sk.cluster_tokens(x, repeat, backend=backend)
    assert out.counts.item() == 9 and len(set(out.decisions.seeds[0].tolist())) < 9


# Two tokens at distance 2, of which alpha is 0.99 at the seed and 0.5 at the other: what is left of
# the scope, and the mass of the first mask, are exact sums of two numbers.
HALVES = dict(
    k=1, max_clusters=2, kernel="epanechnikov", bandwidth=4.0, beta=0.0, alpha="kernel",
    distance_scale=1.0, stop_residual=0.0,
)  # fmt: skip
CLAMPED = torch.tensor(0.99)


def next_to(value, direction):
    return torch.nextafter(value, torch.tensor(direction)).item()


def test_the_loop_stops_at_its_boundaries(backend, regime):
    """`stop_residual` is reached by what equals it, `min_mass` is missed by what is less."""
    x = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    left, mass = ((1 - CLAMPED) + 0.5) / 2, CLAMPED + 0.5
    for options, count in (
        (dict(stop_residual=left.item()), 1),
        (dict(stop_residual=next_to(left, 1.0)), 1),
        (dict(stop_residual=next_to(left, 0.0)), 2),
        (dict(min_mass=mass.item()), 1),
        (dict(min_mass=next_to(mass, 9.0)), 0),
    ):
        config = sk.ClusterConfig(**(HALVES | options))
        out = sk.cluster_tokens(x, config, backend=backend)
        assert out.counts.tolist() == [count], options
        if count:
            assert torch.equal(out.masks[0, 0], torch.tensor([CLAMPED, 0.5]))


def test_a_larger_max_seqlen_gives_the_same(backend, regime):
    """Grids and rows are made for `max_seqlen` tokens: what is behind an image changes nothing."""
    lengths = [5, 0, 11, 1]
    packed, cu_seqlens, _, _ = testing.ragged_batch(lengths, 4, exact=True)
    config = sk.ClusterConfig(k=3, max_clusters=4, stop_residual=0.0)
    weights = torch.arange(1.0, 18.0)
    for cluster, rows in (
        (lambda x, **kwargs: sk.cluster_tokens(x, config, **kwargs), None),
        (lambda x, **kwargs: sk.dpc_knn(x, 3, k=3, cap="eccentricity", **kwargs), None),
        (lambda x, **kwargs: sk.dpc_knn(x, threshold=0.2, k=3, **kwargs), "max_seqlen"),
        (lambda x, **kwargs: sk.threshold_greedy(x, 0.5, **kwargs), "max_seqlen"),
    ):
        found = []
        for longest in (11, 33):
            x = packed.clone().requires_grad_()
            out = cluster(x, cu_seqlens=cu_seqlens, max_seqlen=longest, backend=backend)
            assert out.max_seqlen == longest
            assert rows is None or out.num_rows == longest
            values = {
                name: value
                for name, value in vars(out).items()
                if isinstance(value, torch.Tensor) and name != "centres"
            }
            values["centres"] = out.centres[:, :11]
            assert (out.centres[:, 11:] == -1).all()
            loss = 0
            for mode in ("soft", "hard") if isinstance(out, sk.Clusters) else ("hard",):
                merged = sk.merge_tokens(x, out, mode, weights, backend=backend)
                values |= {f"merged {mode}": merged[:, :11], f"sizes {mode}": out.sizes()[:, :11]}
                assert (merged[:, 11:] == 0).all()
                spread = sk.unmerge_tokens(merged, out, mode, backend=backend)
                values[f"spread {mode}"] = spread
                loss = loss + spread.square().sum()
            loss.backward()
            values["gradient"] = x.grad
            found.append(values | {"packed": out.pack(merged).tokens})
        for other in found[1:]:
            for name, value in found[0].items():
                # Products of longer rows may sum in another order.
                close = dict(rtol=1e-5, atol=1e-5) if value.is_floating_point() else {}
                torch.testing.assert_close(other[name], value, **close, msg=name)
