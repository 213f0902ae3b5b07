"""Importance, budgets and exact numbers of seeds on the Triton backend, in the interpreter."""

import dataclasses
import os

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter; -m gpu has those for a GPU", allow_module_level=True)

import triton
import triton.language as tl

import setok_kernels as sk
from helpers import interpreter
from helpers.clusterings import assert_bit_equal
from helpers.pairwise import pairwise
from setok_kernels import testing
from setok_kernels.reference import scope as reference
from setok_triton import configs
from setok_triton.adjacency import add_score_grads
from setok_triton.chunk import Chunk
from setok_triton.common import Clusters, locate
from setok_triton.delta import score
from setok_triton.scope_backward import score_backward

interpreter.repair()
# NumPy warns of what the kernels mask away.
pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

OPS = torch.ops.setok_interpreted
CONFIGS = {
    "default": sk.ClusterConfig(max_clusters=6),
    "no norm": sk.ClusterConfig(max_clusters=5, k=3, score_norm=None, distance_scale="dim"),
    # Both would stop the loop early.
    "stops": sk.ClusterConfig(
        max_clusters=5, k=3, kernel="laplacian", alpha="kernel", min_mass=2.0, stop_residual=0.6
    ),
}
VALUES = ("density", "delta", "score")


def powers_of_two(shape, seed=0):
    """Weights that round like none; a sixth are 0."""
    generator = torch.Generator().manual_seed(seed)
    powers = torch.randint(-3, 3, shape, generator=generator)
    return torch.where(powers == -3, 0.0, 2.0**powers)


def fractions(shape, seed=0):
    """Weights between 0 and 1; about a fifth are 0."""
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(weight < 0.2, 0, weight)


def keywords(guide):
    """The arguments of `cluster_tokens` for those of `check_backend`."""
    return dict(
        importance=guide.get("importance"),
        num_clusters=guide.get("budget"),
        exact=guide.get("exact_budget", False),
        backend="triton",
    )


def check(x, config, guide, exact=True, **layout):
    """All comparisons with the reference, and a replay."""
    out = testing.check_backend("triton", x, config, exact=exact, **layout, **guide)
    arguments = dict(layout, **keywords(guide))
    assert_bit_equal(sk.cluster_tokens(x, config, decisions=out.decisions, **arguments), out)
    return out


@pytest.mark.parametrize(
    "regime, name, kind, weighted, exact",
    pairwise(
        regime=["dense", "streaming"],
        name=CONFIGS,
        kind=["integers", "duplicates", "equal"],
        weighted=[True, False],
        exact=[True, False],
    ),
    indirect=["regime"],
)
def test_exact_tokens(regime, name, kind, weighted, exact):
    """Two tiles of tokens, ragged at the end; budgets below and at the number of rows."""
    x = {
        "integers": lambda: testing.integer_tokens(3, 70, 5),
        "duplicates": lambda: testing.duplicate_tokens(3, 35, 9, distinct=12),
        "equal": lambda: torch.full((3, 20, 3), 0.1),
    }[kind]()
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(0)) > 0.2
    mask[0] = True
    guide = dict(
        importance=powers_of_two(x.shape[:2]) if weighted else None,
        budget=torch.tensor([1, 3, CONFIGS[name].max_clusters]),
        exact_budget=exact,
    )
    out = check(x, CONFIGS[name], guide, token_mask=mask)
    if exact:
        assert torch.equal(out.counts, guide["budget"])
        assert (out.labels[mask] < out.counts.repeat_interleave(mask.sum(1))).all()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "regime, dtype, tokens",
    [
        ("dense", torch.float16, 40),
        ("dense", torch.float32, 140),
        ("streaming", torch.bfloat16, 140),
    ],
    ids=str,
    indirect=["regime"],
)
def test_real_tokens(regime, dtype, tokens, exact):
    """Several blocks of tokens in the streaming loop."""
    x = testing.vit_like_tokens(1, tokens, 17).to(dtype)
    guide = dict(importance=fractions((1, tokens)), budget=torch.tensor([5]), exact_budget=exact)
    out = check(x, sk.ClusterConfig(max_clusters=7), guide, exact=False)
    assert out.counts == 5 or not exact


@pytest.mark.parametrize("exact", [False, True])
def test_ragged_batches(regime, exact):
    """Fewer tokens than the budget; an empty image; weights of padding are not read."""
    config = sk.ClusterConfig(max_clusters=8, k=3)
    packed, cu_seqlens, padded, mask = testing.ragged_batch([3, 0, 1, 20], 9, exact=True)
    guide = dict(
        importance=powers_of_two(packed.shape[:1]),
        budget=torch.tensor([8, 4, 2, 7]),
        exact_budget=exact,
    )
    out = check(packed, config, guide, cu_seqlens=cu_seqlens)
    assert not exact or out.counts.tolist() == [3, 0, 1, 7]
    spread = torch.full(mask.shape, torch.nan)
    spread[mask] = guide["importance"]
    same = check(padded, config, dict(guide, importance=spread), token_mask=mask)
    assert torch.equal(same.decisions.seeds, out.decisions.seeds)
    for name in ("labels", *VALUES):
        assert torch.equal(getattr(same, name)[mask], getattr(out, name)), name
    assert torch.equal(same.masks.movedim(1, 0)[:, mask], out.masks)


def test_a_chunk_has_its_own_budgets(monkeypatch):
    x = testing.integer_tokens(5, 12, 8)
    config = sk.ClusterConfig(max_clusters=4, k=3)
    guide = dict(importance=powers_of_two((5, 12)), budget=torch.tensor([1, 2, 3, 4, 2]))
    arguments = keywords(dict(guide, exact_budget=True))
    out = sk.cluster_tokens(x, config, **arguments)
    monkeypatch.setattr(configs, "DENSE_BYTES", 2 * 4 * 12 * 12)
    assert configs.dense_images(5, 12, 12) == 2
    assert_bit_equal(sk.cluster_tokens(x, config, **arguments), out)
    assert torch.equal(out.counts, guide["budget"])


def test_weights_of_1_and_budgets_of_all_rows_change_nothing(regime):
    x = testing.vit_like_tokens(2, 40, 9)
    config = CONFIGS["default"]
    out = sk.cluster_tokens(x, config, backend="triton")
    guide = dict(importance=torch.ones(2, 40), budget=torch.full((2,), config.max_clusters))
    assert_bit_equal(sk.cluster_tokens(x, config, **keywords(guide)), out)


def test_non_finite_tokens(regime):
    """They belong to the residual, with any weight; an image of them has no seed."""
    x = testing.integer_tokens(2, 30, 5)
    x[0, 3, 1], x[0, 0, 0], x[1, :] = torch.nan, torch.inf, torch.nan
    guide = dict(importance=powers_of_two((2, 30)) + 1, exact_budget=True)
    out = check(x, CONFIGS["stops"], guide)
    assert out.counts.tolist() == [5, 0]
    assert out.labels[0, [0, 3]].tolist() == [5, 5] and (out.labels[1] == 0).all()


@pytest.mark.parametrize("norm", ["max", None])
def test_weights_of_any_magnitude(regime, norm):
    """No product is infinite, and none is so small that it divides."""
    x = testing.integer_tokens(1, 20, 3, high=100)
    config = sk.ClusterConfig(max_clusters=5, k=3, score_norm=norm, distance_scale=1.0)
    for weight in (0.0, 1e-45, 2.0**-130, 2.0**100, 3.4e38):
        importance = torch.full((1, 20), weight)
        importance[0, 4] = 0
        arguments = dict(importance=importance, exact=True)
        out, expected = (
            sk.cluster_tokens(x, config, **arguments, backend=b) for b in ("triton", "reference")
        )
        assert torch.equal(out.decisions.seeds, expected.decisions.seeds), weight
        torch.testing.assert_close(out.score, expected.score, rtol=2e-6, atol=0)


def arguments_of(x, importance, budget, exact, limit, decisions=(None,) * 4):
    """Of `setok::cluster`: k = 3 and 5 clusters."""
    numbers = (None, 0, 0, 0.5, 0.1, 0.1, 0.5, 0, 0.0, True, 3, 5, True, False, exact, 0.02, 0.0)
    return (x, None, importance, budget, None, x.shape[1], *decisions, *numbers, limit)


WRONG = torch.tensor([-1.0, -torch.inf, torch.inf, torch.nan, -0.0, -1e-45])


def wrong_weights(*shape):
    """Return weights of which the first six of an image are wrong, and what they stand for."""
    good = powers_of_two(shape)
    good[:, :6] = 0
    bad = good.clone()
    bad[:, :6] = WRONG
    return bad, good


@pytest.mark.parametrize("limit", [0, 2048])
def test_values_that_nobody_checked(limit):
    """On a GPU no value is read: the kernels take wrong weights for 0, and clamp budgets."""
    x = testing.integer_tokens(4, 30, 5)
    bad, good = wrong_weights(4, 30)
    # With a weight in any token the scores of the others are not ties.
    for budgets, clamped in (
        ([-3, 0, 99, 2**40], [0, 0, 5, 5]),
        ([-(2**40), 1, 2**31, 6], [0, 1, 5, 5]),
    ):
        found, expected = (
            OPS.cluster(*arguments_of(x, weight, torch.tensor(b), True, limit))
            for weight, b in ((bad, budgets), (good, clamped))
        )
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        assert found[-2].tolist() == clamped
        assert found[7][2, 0] >= 6
        # Without a seed everything is residual.
        assert (found[0][0, 0] == 1).all() and (found[1][0] == 0).all()


@pytest.mark.parametrize("limit", [0, 2048])
def test_wrong_weights_tie(limit):
    """Seeds among tokens of score 0 are those of lowest index; no score is -0."""
    x = testing.integer_tokens(1, 30, 5)
    found = OPS.cluster(*arguments_of(x, WRONG.repeat(5)[None], None, True, limit))
    assert found[7].tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("limit", [0, 2048])
def test_exact_labels_ignore_seeds_behind_the_residual(limit):
    """The operation itself: the public function cuts them off."""
    x = testing.integer_tokens(1, 30, 5)
    made = OPS.cluster(*arguments_of(x, None, None, True, limit))[5:9]
    counts = torch.tensor([2])
    cut = torch.where(torch.arange(5) < 2, made[2], -1)
    labels, want = (
        OPS.cluster(*arguments_of(x, None, None, True, limit, (*made[:2], seeds, counts)))[1]
        for seeds in (made[2], cut)
    )
    assert labels.max() == 1 and torch.equal(labels, want)


@pytest.mark.parametrize("limit", [0, 2048])
def test_gradients_of_weights_that_nobody_checked(limit):
    x = testing.planted_clusters(1, 30, 5, 3, noise=0.4)[0].requires_grad_()
    good = fractions((1, 30)) + 0.1
    good[0, :6] = 0
    bad = good.clone()
    bad[0, :6] = WRONG
    grads = []
    for weight in (good.requires_grad_(), bad.requires_grad_()):
        masks, _, *values = OPS.cluster(*arguments_of(x, weight, None, False, limit))[:5]
        loss = masks.square().sum() + sum(v.square().sum() for v in values)
        grads.append(torch.autograd.grad(loss, [x, weight]))
    (one, right), (two, wrong) = grads
    assert torch.equal(one, two) and torch.equal(right[0, 6:], wrong[0, 6:])
    # A weight of 0 has a gradient, a wrong one has none.
    assert (wrong[0, [0, 1, 2, 3, 5]] == 0).all() and torch.equal(wrong[0, 4], right[0, 4])
    assert (right[0, :6] != 0).any()


@pytest.mark.parametrize(
    "seeds, count",
    [([3, -1, 7, -1, -1], 4), ([-1, 3, 3, 9, 3], 5), ([-1] * 5, 0), ([5, 4, -1, -1, -1], 2)],
    ids=str,
)
def test_exact_labels_of_replayed_decisions(regime, seeds, count):
    """Absent and repeated seeds: as the reference has it."""
    x = testing.planted_clusters(1, 40, 6, 3, noise=0.3)[0]
    x[0, 2] = torch.nan
    config = sk.ClusterConfig(max_clusters=5)
    guide = dict(importance=fractions((1, 40)), exact=True)
    d = sk.cluster_tokens(x, config, backend="triton", **guide).decisions
    forced = dataclasses.replace(d, seeds=torch.tensor([seeds]), counts=torch.tensor([count]))
    out, expected = (
        sk.cluster_tokens(x, config, decisions=forced, backend=b, **guide)
        for b in ("triton", "reference")
    )
    for name in ("masks", *VALUES):
        torch.testing.assert_close(
            getattr(out, name), getattr(expected, name), rtol=1e-5, atol=1e-5
        )
    assert torch.equal(out.labels, expected.labels)
    # Replayed counts settle the number of seeds, whatever the budget.
    again = sk.cluster_tokens(
        x, config, decisions=forced, num_clusters=torch.tensor([1]), backend="triton", **guide
    )
    assert_bit_equal(again, out)


def test_pack_gives_the_budget(regime):
    x = testing.duplicate_tokens(2, 20, 3, distinct=2)
    budget = torch.tensor([9, 4])
    config = sk.ClusterConfig(max_clusters=9)
    out = sk.cluster_tokens(x, config, num_clusters=budget, exact=True, backend="triton")
    merged = sk.merge_tokens(x, out, "hard", backend="triton")
    assert out.pack(merged).cu_seqlens.diff().tolist() == [9, 4]


@pytest.mark.parametrize(
    "dtype, norm, layout",
    [
        (torch.float32, "max", "packed"),
        (torch.float32, None, "masked"),
        (torch.bfloat16, "max", "masked"),
        (torch.float16, "max", "padded"),
    ],
    ids=str,
)
def test_gradients(dtype, norm, layout):
    """Of x, weights and options; the image's best token also through the normaliser."""
    config = sk.ClusterConfig(max_clusters=4, k=3, score_norm=norm, beta=0.4, temperature=0.3)
    x = testing.planted_clusters(2, 20, 7, 4, noise=0.4)[0].to(dtype)
    importance = fractions((2, 20)) * 2
    given = {}
    if layout == "masked":
        given = dict(token_mask=torch.arange(20) < torch.tensor([[20], [11]]))
    if layout == "packed":
        x, importance = x.flatten(0, 1), importance.flatten()
        given = dict(cu_seqlens=torch.tensor([0, 11, 11, 12, 40], dtype=torch.int32))
    testing.assert_replayed_gradients(x, config, "triton", importance=importance, **given)


@triton.jit
def score_grads_kernel(
    p_offsets, out, scores, p_importance, p_density, p_delta, p_weights, L, BLOCK_N: tl.constexpr
):
    """The gradients of density, delta and weights by the score, which other kernels only use."""
    at = locate(p_offsets, L, tl.cdiv(L, BLOCK_N))
    o_n = at.i_block * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < at.n
    b_rho = tl.load(out.p_density + at.start + o_n, mask=m_n, other=0.0)
    b_delta = tl.load(out.p_delta + at.start + o_n, mask=m_n, other=0.0)
    b_by_rho, b_by_delta = add_score_grads(
        scores, p_importance, p_weights, at, o_n, m_n, b_rho, b_delta
    )
    tl.store(p_density + at.start + o_n, b_by_rho, mask=m_n)
    tl.store(p_delta + at.start + o_n, b_by_delta, mask=m_n)


@pytest.mark.parametrize("norm", ["max", None])
def test_scores_of_more_tokens_than_a_block(norm):
    """The best token is in the second block; a score that is clamped has no gradient."""
    total, generator = 1100, torch.Generator().manual_seed(0)
    density, delta, grad = (torch.rand(total, generator=generator) for _ in range(3))
    importance = fractions((total,))
    importance[1070] = 1e4
    if norm is None:
        delta[:5], importance[:5] = 1e30, 1e30
    leaves = [t.double().requires_grad_() for t in (density, delta, importance)]
    truth = reference.seed_score(*(t[None] for t in leaves[:2]), norm, None, leaves[2][None])[0]
    truth = truth.clamp(max=torch.finfo(torch.float32).max)
    want = torch.autograd.grad((truth * grad.double()).sum(), leaves)

    offsets, unused = torch.tensor([0, total]), torch.empty(0)
    chunk = Chunk(unused, offsets, unused, unused, unused, total)
    scores = torch.empty(total)
    # Bits of the maximum, as `delta` returns them.
    largest = torch.finfo(torch.float32).max
    highest = (density * delta * importance).clamp(max=largest).amax()[None].view(torch.int32)
    score(chunk, density, delta, importance, None, highest, scores, norm == "max")
    torch.testing.assert_close(scores.double(), truth.detach(), rtol=1e-6, atol=0)
    assert norm is None or scores.argmax() == 1070
    none = torch.full((1, 1), -1)
    out = Clusters(*[unused] * 2, none, *[unused] * 2, density, delta, scores)
    got = [torch.empty(total) for _ in range(3)]
    scores_of = score_backward(chunk, out, importance, grad, norm == "max")
    score_grads_kernel[(3,)](offsets, out, scores_of, importance, *got, total, BLOCK_N=512)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6 * b.abs().max().item())
    if norm is None:
        assert (scores[:5] == torch.finfo(torch.float32).max).all() and (got[2][:5] == 0).all()


PEAKS = {
    "count": dict(num_clusters=7),
    "budget": dict(num_clusters=torch.tensor([3, 12])),
    "rate": dict(rate=torch.tensor([0.1, 0.5]), order="index", cap="eccentricity"),
    "threshold": dict(threshold=0.7, num_clusters=torch.tensor([2, 30]), min_clusters=2, k=3),
}


@pytest.mark.parametrize(
    "regime, name, kind, weighted",
    pairwise(
        regime=["dense", "streaming"],
        name=PEAKS,
        kind=["integers", "duplicates", "equal"],
        weighted=[True, False],
    ),
    indirect=["regime"],
)
def test_density_peaks(regime, name, kind, weighted):
    x = {
        "integers": lambda: testing.integer_tokens(2, 70, 5),
        "duplicates": lambda: testing.duplicate_tokens(2, 35, 9, distinct=12),
        "equal": lambda: torch.full((2, 20, 3), 0.1),
    }[kind]()
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(0)) > 0.2
    options = dict(PEAKS[name], token_mask=mask)
    if weighted:
        options["importance"] = torch.where(mask, powers_of_two(x.shape[:2]), torch.nan)
    out, expected = (sk.dpc_knn(x, **options, backend=b) for b in ("triton", "reference"))
    testing.assert_same_hard_clusters(out, expected)
    plain = sk.dpc_knn(x, **dict(options, importance=torch.ones(x.shape[:2])), backend="triton")
    without = sk.dpc_knn(x, **dict(options, importance=None), backend="triton")
    for field in ("labels", "centres", "counts", "score"):
        assert torch.equal(getattr(plain, field), getattr(without, field)), field


def test_density_peaks_of_ragged_batches(regime):
    packed, cu_seqlens, padded, mask = testing.ragged_batch([3, 0, 1, 20], 9, exact=True)
    importance = fractions(packed.shape[:1])
    spread = torch.full(mask.shape, torch.nan)
    spread[mask] = importance
    for budget in (dict(rate=0.2), dict(num_clusters=torch.tensor([2, 1, 5, 9]))):
        given = dict(cu_seqlens=cu_seqlens, importance=importance, **budget)
        out, expected = (sk.dpc_knn(packed, **given, backend=b) for b in ("triton", "reference"))
        testing.assert_same_hard_clusters(out, expected)
        given = dict(token_mask=mask, importance=spread, **budget)
        same = sk.dpc_knn(padded, **given, backend="triton")
        assert torch.equal(same.centres, out.centres)
        assert torch.equal(same.labels[mask], out.labels)
        assert torch.equal(same.score[mask], out.score)


@pytest.mark.parametrize("limit", [0, 2048])
def test_density_peaks_of_values_that_nobody_checked(limit):
    x = testing.integer_tokens(3, 20, 5)
    bad, good = wrong_weights(3, 20)
    found, expected = (
        OPS.dpc_knn(
            *(x, None, None, 20, None, weight, torch.tensor(budget), 3, 5),
            *(-torch.inf, 1, False, True, limit),
        )
        for weight, budget in ((bad, [-3, 2**40, 4]), (good, [0, 5, 4]))
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert found[2].tolist() == [0, 5, 4]


def test_operations_pass_opcheck():
    x = testing.vit_like_tokens(2, 8, 4).requires_grad_()
    importance, budget = fractions((2, 8)).requires_grad_(), torch.tensor([2, 4])
    torch.library.opcheck(OPS.cluster.default, arguments_of(x, importance, budget, True, 2048))
    dpc = (x.detach(), None, None, 8, None, importance.detach(), budget, 3, 4)
    torch.library.opcheck(OPS.dpc_knn.default, (*dpc, -torch.inf, 1, False, True, 2048))


def test_no_tokens():
    config = sk.ClusterConfig(max_clusters=3)
    for shape in ((0, 5, 3), (2, 0, 3)):
        x = torch.zeros(shape).requires_grad_()
        weight = torch.ones(shape[:2]).requires_grad_()
        guide = dict(budget=torch.full((shape[0],), 2), exact_budget=True, importance=weight)
        out = sk.cluster_tokens(x, config, **keywords(guide))
        out.masks.sum().backward()
        assert (out.counts == 0).all() and weight.grad.shape == shape[:2]
