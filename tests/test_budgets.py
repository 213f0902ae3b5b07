"""Budgets of clusters per image: numbers and rates, at most and exactly."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import setok_kernels as sk
from helpers.strategies import configs, exact_tokens, real_tokens
from setok_kernels import testing
from setok_kernels.budgets import resolve_budget

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")

CPU = torch.device("cpu")
# Nothing stops the loop but the budget.
ENDLESS = sk.ClusterConfig(stop_residual=0.0)


@st.composite
def budgets(draw, images, most):
    """(B,) clusters per image."""
    return torch.tensor(draw(st.lists(st.integers(1, most), min_size=images, max_size=images)))


@given(x=exact_tokens(torch.float32), config=configs, data=st.data())
def test_at_most_n_seeds_are_a_prefix(backend, x, config, data):
    most = config.max_clusters
    budget = data.draw(budgets(len(x), most))
    full = sk.cluster_tokens(x, config, backend=backend)
    out = sk.cluster_tokens(x, config, num_clusters=budget, backend=backend)
    assert torch.equal(out.counts, full.counts.minimum(budget))
    kept = torch.arange(most) < budget[:, None]
    assert torch.equal(out.decisions.seeds, full.decisions.seeds.where(kept, -1))
    same = (out.masks == full.masks)[:, :-1].all(2)
    assert same[kept & (out.decisions.seeds >= 0)].all()
    # One number for all images is the config's.
    n = int(budget[0])
    one = sk.cluster_tokens(x, config, num_clusters=n, backend=backend)
    other = sk.cluster_tokens(x, dataclasses.replace(config, max_clusters=n), backend=backend)
    assert one.masks.shape[1] == n + 1 and torch.equal(one.masks, other.masks)


@given(x=real_tokens(), config=configs, data=st.data())
def test_exactly_n_clusters_come_out(backend, x, config, data):
    config = dataclasses.replace(config, distinct_seeds=True)
    images, tokens = x.shape[:2]
    budget = data.draw(budgets(images, config.max_clusters))
    mask = torch.tensor([[data.draw(st.booleans()) for _ in range(tokens)] for _ in range(images)])
    out = testing.check_backend(
        backend, x, config, token_mask=mask, budget=budget, exact_budget=True
    )
    expected = budget.minimum(mask.sum(1))
    assert torch.equal(out.counts, expected)
    packed = out.pack(sk.merge_tokens(x, out, backend=backend))
    assert torch.equal(packed.cu_seqlens.diff().long(), expected)
    for b in range(images):
        seeds = out.decisions.seeds[b, : expected[b]]
        assert out.labels[b, seeds].tolist() == list(range(expected[b]))
        if expected[b]:
            assert (out.labels[b][mask[b]] < expected[b]).all()


def test_exactly_as_many_clusters_as_tokens(backend, regime):
    """One cluster per token: merging changes no token."""
    x = testing.duplicate_tokens(2, 20, 5, distinct=4)
    out = sk.cluster_tokens(x, num_clusters=20, exact=True, backend=backend)
    assert out.counts.tolist() == [20, 20]
    merged = sk.merge_tokens(x, out, backend=backend)
    assert torch.equal(sk.unmerge_tokens(merged, out, backend=backend), x)
    more = sk.cluster_tokens(x, num_clusters=31, exact=True, backend=backend)
    assert more.counts.tolist() == [20, 20] and more.num_rows == 32
    assert torch.equal(more.labels, out.labels)


def test_exact_without_a_budget_fills_the_rows(backend):
    x = testing.planted_clusters(2, 40, 6, 3)[0]
    config = sk.ClusterConfig(max_clusters=12)
    assert (sk.cluster_tokens(x, config, backend=backend).counts < 12).all()
    for mass in (0.0, 30.0):
        config = dataclasses.replace(config, min_mass=mass, stop_residual=1.0)
        out = sk.cluster_tokens(x, config, exact=True, backend=backend)
        assert out.counts.tolist() == [12, 12]
        testing.assert_invariants(x, out, config, exact_budget=True)


def test_non_finite_tokens_stay_in_the_residual(backend):
    x = testing.planted_clusters(2, 9, 4, 3, noise=0.3)[0]
    x[0, 2], x[1] = torch.nan, torch.inf
    out = sk.cluster_tokens(x, num_clusters=9, exact=True, backend=backend)
    assert out.counts.tolist() == [8, 0]
    assert out.labels[0, 2] == 8 and (out.labels[1] == 0).all()
    again = sk.cluster_tokens(
        x, num_clusters=9, exact=True, decisions=out.decisions, backend=backend
    )
    assert torch.equal(again.labels, out.labels)


def test_replayed_labels_are_exact_too(backend):
    x = testing.planted_clusters(1, 12, 4, 3, noise=0.3)[0]
    config = sk.ClusterConfig(max_clusters=6)
    out = sk.cluster_tokens(x, config, exact=True, backend=backend)
    # Fewer seeds, and a seed twice: it has its first row.
    seeds = out.decisions.seeds.clone()
    seeds[0, 2] = seeds[0, 0]
    changed = dataclasses.replace(out.decisions, seeds=seeds, counts=torch.tensor([4]))
    replay = sk.cluster_tokens(x, config, decisions=changed, exact=True, backend=backend)
    first, second, _, last = seeds[0, :4].tolist()
    assert replay.labels[0, [first, second, last]].tolist() == [0, 1, 3]
    assert (replay.labels < 4).all()
    loose = sk.cluster_tokens(x, config, decisions=changed, backend=backend)
    assert torch.equal(loose.masks, replay.masks)
    # The decisions settle the seeds, whatever the budget is.
    one = torch.tensor([1])
    budget = sk.cluster_tokens(
        x, config, decisions=changed, num_clusters=one, exact=True, backend=backend
    )
    assert torch.equal(budget.labels, replay.labels)


@pytest.mark.parametrize(
    "rate, tokens, expected",
    [
        (0.1, 730, 73), (0.07, 100, 7), (0.07, 101, 8), (0.5, 3, 2), (1, 9, 9), (1e-9, 9, 1),
        (1 / 3, 729, 243), (0.29, 100, 29), (0.99999, 729, 729), (0.1, 0, 0),
    ],
)  # fmt: skip
def test_rates_round_up_without_rounding_errors(rate, tokens, expected):
    lengths = torch.tensor([tokens, tokens // 2])
    for length in (None, lengths):
        rows, budget = resolve_budget(None, rate, length, 2, tokens, CPU, None)
        assert rows == max(expected, 1)
        if length is not None:
            assert budget[0] == expected and budget.dtype == torch.int64
        for dtype in (torch.float64, torch.float32):
            rates = torch.full((2,), rate, dtype=dtype)
            rows, budget = resolve_budget(None, rates, length, 2, tokens, CPU, None)
            assert rows is None and budget[0] == expected and budget.dtype == torch.int64


def test_rates_are_of_the_valid_tokens_of_each_image(backend):
    lengths = [30, 0, 1, 13]
    packed, cu_seqlens, padded, mask = testing.ragged_batch(lengths, 6)
    expected = [9, 0, 1, 4]
    for rate in (0.3, torch.full((4,), 0.3)):
        arguments = dict(rate=rate, exact=True, backend=backend)
        one = sk.cluster_tokens(packed, ENDLESS, cu_seqlens=cu_seqlens, **arguments)
        two = sk.cluster_tokens(padded, ENDLESS, token_mask=mask, **arguments)
        assert one.counts.tolist() == two.counts.tolist() == expected
        assert one.num_rows == two.num_rows == (10 if isinstance(rate, float) else 65)
        peaks = sk.dpc_knn(packed, cu_seqlens=cu_seqlens, rate=rate, backend=backend)
        assert peaks.counts.tolist() == expected
        assert peaks.num_rows == (9 if isinstance(rate, float) else 30)
    rates = torch.tensor([0.1, 0.5, 1.0, 0.5])
    out = sk.cluster_tokens(
        packed, ENDLESS, cu_seqlens=cu_seqlens, rate=rates, exact=True, backend=backend
    )
    assert out.counts.tolist() == [3, 0, 1, 7]


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4), data=st.data())
def test_batch_equals_loop(backend, lengths, data):
    packed, cu_seqlens, _, _ = testing.ragged_batch(lengths, 3, exact=True)
    config = sk.ClusterConfig(max_clusters=7)
    exact, budget = data.draw(st.booleans()), data.draw(budgets(len(lengths), 7))
    arguments = dict(exact=exact, backend=backend)
    out = sk.cluster_tokens(packed, config, cu_seqlens=cu_seqlens, num_clusters=budget, **arguments)
    peaks = sk.dpc_knn(packed, budget, cu_seqlens=cu_seqlens, backend=backend)
    for b, (start, end) in enumerate(itertools.pairwise(cu_seqlens)):
        one, n = packed[None, start:end], int(budget[b])
        alone = sk.cluster_tokens(one, config, num_clusters=budget[b : b + 1], **arguments)
        assert torch.equal(alone.labels[0], out.labels[start:end])
        assert torch.equal(alone.masks[0], out.masks[:, start:end])
        assert torch.equal(alone.decisions.seeds[0], out.decisions.seeds[b])
        alone = sk.dpc_knn(one, n, backend=backend)
        assert torch.equal(alone.labels[0], peaks.labels[start:end])
        assert peaks.counts[b] == min(n, int(end - start)) == alone.counts[0]


def test_a_budget_bounds_the_centres_behind_a_threshold(backend):
    x = testing.planted_clusters(2, 40, 6, 5, noise=0.4)[0]
    free = sk.dpc_knn(x, threshold=0.1, backend=backend)
    assert (free.counts > 3).all()
    few = sk.dpc_knn(x, torch.tensor([2, 40]), threshold=0.1, backend=backend)
    assert few.counts.tolist() == [2, free.counts[1]] and few.num_rows == 40
    none = sk.dpc_knn(
        x, torch.tensor([2, 9]), threshold=9.0, min_clusters=4, order="index", backend=backend
    )
    assert none.counts.tolist() == [2, 4]
    assert (none.centres[:, :2].diff(dim=1) > 0).all()


X = torch.zeros(2, 5, 3)
TWO = torch.tensor([2, 2])


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        (dict(num_clusters=2, rate=0.5), ValueError, "rate: expected None with num_clusters"),
        (dict(num_clusters=0), ValueError, "num_clusters: expected at least 1, got 0"),
        (dict(num_clusters=2.0), TypeError, "num_clusters: expected an int, got 2.0"),
        (dict(num_clusters=True), TypeError, "num_clusters: expected an int, got True"),
        (dict(num_clusters=TWO.float()), TypeError, "num_clusters: expected dtype torch.int64"),
        (dict(num_clusters=TWO[0]), ValueError, r"num_clusters: expected shape \(2,\), got \(\)"),
        (dict(num_clusters=TWO - 2), ValueError, "num_clusters: expected values from 1 to"),
        (dict(num_clusters=TWO.to("meta")), ValueError, "num_clusters: expected device cpu"),
        (dict(rate=0), ValueError, "rate: expected more than 0, got 0"),
        (dict(rate=1.5), ValueError, "rate: expected at most 1, got 1.5"),
        (dict(rate=float("nan")), ValueError, "rate: expected a finite number, got nan"),
        (dict(rate="0.5"), TypeError, "rate: expected a real number, got '0.5'"),
        (dict(rate=TWO), TypeError, "rate: expected dtype float64, .* got torch.int64"),
        (dict(rate=TWO / 4), None, ""),
        (dict(rate=TWO * 0.6), ValueError, r"rate: expected values in \(0, 1\], got 1.2"),
        (dict(rate=TWO * torch.nan), ValueError, r"rate: expected values in \(0, 1\], got nan"),
        (dict(rate=torch.ones(3)), ValueError, r"rate: expected shape \(2,\), got \(3,\)"),
    ],
)
@pytest.mark.parametrize("function", ["cluster_tokens", "dpc_knn"])
def test_misfits(backend, function, arguments, error, match):
    run = getattr(sk, function)
    if error is None:
        run(X, **arguments, backend=backend)
        return
    with pytest.raises(error, match=f"^{match}"):
        run(X, **arguments, backend=backend)


def test_budgets_above_the_rows_and_repeated_seeds_are_refused(backend):
    config = sk.ClusterConfig(max_clusters=3)
    with pytest.raises(ValueError, match=r"^num_clusters: expected values from 1 to 3, got 4$"):
        sk.cluster_tokens(X, config, num_clusters=TWO + 2, backend=backend)
    match = r"^rate: expected at most config\.max_clusters = 3 clusters per image, got 5$"
    with pytest.raises(ValueError, match=match):
        sk.cluster_tokens(X, config, rate=torch.ones(2), backend=backend)
    with pytest.raises(ValueError, match=r"^exact: expected config\.distinct_seeds=True"):
        sk.cluster_tokens(X, sk.ClusterConfig.paper(), exact=True, backend=backend)
    with pytest.raises(TypeError, match=r"^exact: expected a bool, got int"):
        sk.cluster_tokens(X, config, exact=1, backend=backend)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)])
def test_empty_input(backend, shape):
    x = torch.zeros(shape)
    weight = torch.zeros(shape[:2]).requires_grad_()
    budget = torch.ones(shape[0], dtype=torch.int64)
    for given_budget in (dict(num_clusters=budget), dict(rate=0.5), dict(rate=budget.float())):
        out = sk.cluster_tokens(x, **given_budget, importance=weight, exact=True, backend=backend)
        assert (out.counts == 0).all() and out.labels.shape == shape[:2]
        out = sk.dpc_knn(x, **given_budget, importance=weight, backend=backend)
        assert (out.counts == 0).all() and out.labels.shape == shape[:2]
