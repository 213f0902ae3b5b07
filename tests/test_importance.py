"""Weights of the tokens in the choice of seeds: exact decisions, properties, gradients."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import setok_kernels as sk
from helpers.clusterings import assert_bit_equal
from helpers.strategies import configs, exact_importance, exact_tokens, guides, real_tokens
from setok_kernels import testing

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")


def random_importance(shape, seed=0, dtype=torch.float32):
    """Weights between 0 and 1; about a fifth are 0."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(shape, generator=generator, dtype=dtype)
    return torch.where(weight < 0.2, 0, weight)


@settings(max_examples=80)
@given(x=exact_tokens(torch.float32), config=configs, data=st.data())
def test_equivalence_on_exact_input(backend, x, config, data):
    guide = data.draw(guides(x.shape[:2], config, dtype=torch.float32))
    testing.check_backend(backend, x, config, exact=True, **guide)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    config=configs,
    data=st.data(),
)
def test_equivalence_on_ragged_batches(backend, lengths, seed, config, data):
    packed, cu_seqlens, padded, mask = testing.ragged_batch(lengths, 3, seed, exact=True)
    guide = data.draw(guides(packed.shape[:1], config, len(lengths), torch.float32))
    one = testing.check_backend(backend, packed, config, cu_seqlens=cu_seqlens, exact=True, **guide)
    if guide["importance"] is not None:
        # Weights of masked tokens are not read.
        weight = torch.full(mask.shape, torch.nan)
        weight[mask] = guide["importance"]
        guide["importance"] = weight
    two = testing.check_backend(backend, padded, config, token_mask=mask, exact=True, **guide)
    for name in ("labels", "density", "delta", "score"):
        assert torch.equal(getattr(one, name), getattr(two, name)[mask]), name
    assert torch.equal(one.decisions.seeds, two.decisions.seeds)
    assert torch.equal(one.masks.mT, two.masks.mT[mask])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_equivalence_on_real_input(backend, regime, dtype):
    x = testing.vit_like_tokens(2, 70, 33, seed=4, dtype=dtype)
    for config in (sk.ClusterConfig(max_clusters=9), sk.ClusterConfig.paper(max_clusters=9)):
        weight = random_importance((2, 70), 1)
        testing.check_backend(backend, x, config, importance=weight)


@given(x=real_tokens(), config=configs)
def test_importance_of_1_changes_no_bit(backend, x, config):
    out = sk.cluster_tokens(x, config, backend=backend)
    ones = torch.ones(x.shape[:2])
    assert_bit_equal(sk.cluster_tokens(x, config, importance=ones, backend=backend), out)


@given(x=real_tokens(), config=configs, power=st.sampled_from([-60, -3, 1, 40]))
def test_scaling_importance_by_a_power_of_two_changes_no_bit(backend, x, config, power):
    config = dataclasses.replace(config, score_norm="max")
    weight = random_importance(x.shape[:2])
    out, scaled = (
        sk.cluster_tokens(x, config, importance=w, backend=backend)
        for w in (weight, weight * 2.0**power)
    )
    assert_bit_equal(scaled, out)


@settings(max_examples=40)
@given(seed=st.integers(0, 999), random=st.randoms(use_true_random=False))
def test_permuted_importance_permutes(backend, seed, random):
    x = testing.planted_clusters(2, 18, 5, 3, seed, 0.4, torch.float64)[0]
    weight = random_importance((2, 18), seed, torch.float64) + 0.1
    order = list(range(18))
    random.shuffle(order)
    order = torch.tensor(order)
    config, back = sk.ClusterConfig(max_clusters=6), order.argsort()
    out = sk.cluster_tokens(x, config, importance=weight, exact=True, backend=backend)
    permuted = sk.cluster_tokens(
        x[:, order], config, importance=weight[:, order], exact=True, backend=backend
    )
    assert torch.equal(order[permuted.decisions.seeds], out.decisions.seeds)
    assert torch.equal(permuted.labels[:, back], out.labels)
    torch.testing.assert_close(permuted.score[:, back], out.score)
    # The weights alone move as well: other tokens become seeds.
    assert permuted.decisions.seeds.shape == out.decisions.seeds.shape
    alone = sk.cluster_tokens(x, config, importance=weight[:, order], exact=True, backend=backend)
    same = sk.cluster_tokens(
        x[:, back], config, importance=weight, exact=True, backend=backend
    ).decisions.seeds
    assert torch.equal(back[same], alone.decisions.seeds)


def test_importance_chooses_the_seeds(backend):
    """A large weight comes first; a weight of 0 comes after all others."""
    x, member = testing.planted_clusters(1, 24, 8, 3, seed=5)
    plain = sk.cluster_tokens(x, backend=backend)
    weight = torch.ones(1, 24)
    chosen = 17
    weight[0, chosen] = 1e4
    out = sk.cluster_tokens(x, importance=weight, backend=backend)
    assert plain.decisions.seeds[0, 0] != chosen == out.decisions.seeds[0, 0]
    weight = (member == member[0, chosen]).float()
    exact = sk.cluster_tokens(x, importance=weight, num_clusters=24, exact=True, backend=backend)
    own = int(weight.sum())
    # The densest and nearest of equal score come in any order; all of the weighted come first.
    scored = exact.score[0, exact.decisions.seeds[0]] > 0
    assert scored[: scored.sum()].all() and 0 < scored.sum() <= own


@pytest.mark.parametrize("norm", ["max", None])
def test_huge_and_tiny_weights_stay_finite(backend, norm):
    x = testing.integer_tokens(1, 12, 3, high=100)
    config = sk.ClusterConfig(max_clusters=5, score_norm=norm)
    for weight in (3.4e38, 1e4, 1e-4, 1e-45, 0.0):
        importance = torch.full((1, 12), weight).requires_grad_()
        x = x.detach().requires_grad_()
        out = sk.cluster_tokens(x, config, importance=importance, backend=backend)
        testing.assert_invariants(x, out, config)
        if weight < 1e5:
            grads = torch.autograd.grad(out.masks.square().sum(), [x, importance])
            assert all(g.isfinite().all() for g in grads)
    # The largest scores are equal, where their products would be infinite.
    far = dataclasses.replace(config, distance_scale=1.0, score_norm=None)
    importance = torch.full((1, 3), 3.4e38)
    out = sk.cluster_tokens(torch.eye(3)[None] * 2, far, importance=importance, backend=backend)
    assert (out.score <= torch.finfo(torch.float32).max).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=25)
@given(data=st.data(), config=configs)
def test_replay_is_bit_equal(backend, dtype, data, config):
    x = data.draw(real_tokens(dtype))
    guide = dict(
        importance=random_importance(x.shape[:2]),
        exact=config.distinct_seeds and data.draw(st.booleans()),
        backend=backend,
    )
    out = sk.cluster_tokens(x, config, **guide)
    assert_bit_equal(sk.cluster_tokens(x, config, decisions=out.decisions, **guide), out)


LAYOUTS = ["padded", "masked", "packed"]


def inputs(layout, dtype=torch.float64):
    packed, cu_seqlens, padded, mask = testing.ragged_batch([7, 0, 5], 3, seed=2, dtype=dtype)
    padded = torch.where(mask[..., None], padded, 0.3)
    x, arguments = {
        "padded": (padded[:1], {}),
        "masked": (padded, dict(token_mask=mask)),
        "packed": (packed, dict(cu_seqlens=cu_seqlens)),
    }[layout]
    weight = random_importance(x.shape[:-1], 1, dtype) + 0.05
    return x.requires_grad_(), weight.requires_grad_(), arguments


@pytest.mark.parametrize("norm", ["max", None])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(backend, layout, norm):
    config = sk.ClusterConfig(
        k=3, max_clusters=4, score_norm=norm, distance_scale=0.15, bandwidth=0.7,
        temperature=0.6, beta=0.3, offset=0.4, stop_residual=0.0,
    )  # fmt: skip
    x, weight, arguments = inputs(layout)
    arguments["backend"] = backend
    decisions = sk.cluster_tokens(x, config, importance=weight, **arguments).decisions
    assert decisions.counts.max() > 1

    def function(x, weight):
        out = sk.cluster_tokens(x, config, importance=weight, decisions=decisions, **arguments)
        return out.masks, out.density, out.delta, out.score

    torch.autograd.gradcheck(function, [x, weight])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_against_the_reference(backend, dtype, layout):
    x, weight, arguments = inputs(layout, dtype)
    if layout == "packed":
        x = testing.vit_like_tokens(1, 12, 6, dtype=dtype)[0]
    for config in (sk.ClusterConfig(k=3, max_clusters=4), sk.ClusterConfig.paper(max_clusters=4)):
        testing.assert_replayed_gradients(x, config, backend, importance=weight, **arguments)


def test_excluded_tokens_get_no_gradient(backend):
    x = testing.planted_clusters(1, 12, 4, 3, noise=0.3)[0]
    x[0, 3] = torch.nan
    mask = torch.arange(12)[None] != 7
    weight = random_importance((1, 12)) + 0.1
    weight[0, 7] = torch.nan
    weight.requires_grad_()
    out = sk.cluster_tokens(x, importance=weight, token_mask=mask, backend=backend)
    (grad,) = torch.autograd.grad(out.masks.square().sum() + out.score.sum(), weight)
    assert (grad[0, [3, 7]] == 0).all() and grad.isfinite().all() and (grad != 0).any()
    assert grad.shape == weight.shape and grad.dtype == weight.dtype


def test_grids_and_module(backend):
    x = testing.vit_like_tokens(2, 12, 5)
    weight = random_importance((2, 12)) + 0.1
    flat = sk.cluster_tokens(x, importance=weight, backend=backend)
    for shape in ((2, 12), (2, 3, 4)):
        grid = sk.cluster_tokens(
            x.reshape(2, 3, 4, 5), importance=weight.reshape(shape), backend=backend
        )
        assert torch.equal(grid.masks, flat.masks)
    module = sk.TokenClustering(backend=backend)
    budget = dict(rate=0.25, exact=True, importance=weight)
    out = module(x, **budget)
    assert torch.equal(out.labels, sk.cluster_tokens(x, **budget, backend=backend).labels)
    assert out.counts.tolist() == [3, 3]


@settings(max_examples=60)
@given(x=exact_tokens(torch.float32), data=st.data())
def test_density_peaks_with_importance(backend, x, data):
    importance = data.draw(exact_importance(x.shape[:2], torch.float32))
    budget = data.draw(
        st.one_of(
            st.none(),
            st.lists(st.integers(1, 12), min_size=len(x), max_size=len(x)).map(torch.tensor),
        )
    )
    options = dict(threshold=data.draw(st.sampled_from([None, 0.3])), k=3)
    if budget is None and options["threshold"] is None:
        options["num_clusters"] = 3
    arguments = dict(options, importance=importance)
    if budget is not None:
        arguments["num_clusters"] = budget
    out, expected = (sk.dpc_knn(x, **arguments, backend=b) for b in (backend, "reference"))
    testing.assert_same_hard_clusters(out, expected)
    testing.assert_valid_density_peaks(x, out, **options, importance=importance, budget=budget)
    if importance is not None:
        plain = sk.dpc_knn(x, **(arguments | dict(importance=None)), backend=backend)
        assert torch.equal(out.score, plain.score * importance)
        ones = torch.ones_like(importance)
        same = sk.dpc_knn(x, **(arguments | dict(importance=ones)), backend=backend)
        assert torch.equal(same.centres, plain.centres) and torch.equal(same.score, plain.score)


X, WEIGHT = torch.zeros(2, 5, 3), torch.ones(2, 5)


@pytest.mark.parametrize(
    "importance, error, match",
    [
        (3, TypeError, r"importance: expected a torch.Tensor, got int"),
        (WEIGHT.long(), TypeError, r"importance: expected dtype float64, .* got torch.int64"),
        (WEIGHT[:, :4], ValueError, r"importance: expected shape \(2, 5\), got \(2, 4\)"),
        (WEIGHT.to("meta"), ValueError, r"importance: expected device cpu like x, got meta"),
        (-WEIGHT, ValueError, r"importance: expected finite values of at least 0, got -1"),
        (WEIGHT * torch.nan, ValueError, r"importance: expected finite values .* got nan"),
        (WEIGHT * torch.inf, ValueError, r"importance: expected finite values .* got inf"),
        (WEIGHT.double() * 1e39, ValueError, r"importance: expected finite values .* got inf"),
    ],
)
@pytest.mark.parametrize("function", ["cluster_tokens", "dpc_knn"])
def test_misfits(backend, function, importance, error, match):
    arguments = dict(num_clusters=2, importance=importance, backend=backend)
    with pytest.raises(error, match=f"^{match}"):
        getattr(sk, function)(X, **arguments)
