"""dpc_knn: against the oracle, the reference and float64; what its options mean."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import setok_kernels as sk
from helpers import hard_oracle
from helpers.strategies import exact_noise, exact_tokens, peak_options, real_tokens, token_masks
from setok_kernels import testing

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")

VALUES = ("density", "delta", "score")


def judge(backend, x, options, exact=False, token_mask=None, noise=None, cu_seqlens=None):
    """Runs `backend`, and every comparison that fits."""
    arguments = dict(token_mask=token_mask, noise=noise)
    packed = dict(cu_seqlens=cu_seqlens)
    out = sk.dpc_knn(x, **options, **arguments, **packed, backend=backend)
    testing.assert_valid_density_peaks(x, out, **options, **arguments)
    if exact:
        expected = sk.dpc_knn(x, **options, **arguments, **packed, backend="reference")
        testing.assert_same_hard_clusters(out, expected)
    return out


@settings(max_examples=200)
@given(exact_tokens(), peak_options(), st.data())
def test_reference_equals_oracle(x, options, data):
    mask = data.draw(token_masks(x))
    noise = data.draw(exact_noise(x.shape[:2]))
    out = sk.dpc_knn(x, **options, token_mask=mask, noise=noise, backend="reference")
    for b in range(x.shape[0]):
        position = mask[b].nonzero()[:, 0].tolist()
        given_noise = None if noise is None else noise[b, mask[b]].tolist()
        expected = hard_oracle.dpc_knn(x[b, mask[b]].tolist(), **options, noise=given_noise)
        local = [*position, -1]
        count = len(expected["centres"])
        assert out.counts[b] == count
        assert out.centres[b, :count].tolist() == [position[c] for c in expected["centres"]]
        assert (out.centres[b, count:] == -1).all() and (out.labels[b, ~mask[b]] == -1).all()
        assert out.labels[b, mask[b]].tolist() == expected["labels"]
        assert out.parent[b, mask[b]].tolist() == [local[p] for p in expected["parent"]]
        for row, near in zip(out.knn[b, mask[b]].tolist(), expected["knn"], strict=True):
            assert row == [position[j] for j in near] + [-1] * (options["k"] - len(near))
        for name in VALUES:
            got = getattr(out, name)[b, mask[b]]
            torch.testing.assert_close(
                got, torch.tensor(expected[name], dtype=torch.float64), rtol=1e-14, atol=0
            )


def test_oracle_by_hand():
    """Four tokens on a line, worked out on paper: keeps the oracle itself honest."""
    tokens = [[0.0], [1.0], [3.0], [10.0]]
    result = hard_oracle.dpc_knn(tokens, 2, k=2)
    assert result["knn"] == [[0, 1], [1, 0], [2, 1], [3, 2]]
    assert result["density"] == pytest.approx([0.6065307, 0.6065307, 0.1353353, 2.289735e-11])
    assert result["parent"] == [-1, 0, 1, 2]
    assert result["delta"] == [10, 1, 2, 7]
    assert result["centres"] == [0, 1] and result["labels"] == [0, 1, 1, 1]
    # The farthest of 0, 1, 2 and 3 are 10, 9, 7 and 10 away.
    capped = hard_oracle.dpc_knn(tokens, 2, k=2, cap="eccentricity", noise=[0, 0, 0.5, 0])
    assert capped["parent"] == [2, 0, -1, 2] and capped["delta"] == [3, 1, 7, 7]
    assert capped["centres"] == [2, 0] and capped["labels"] == [1, 1, 0, 0]
    several = hard_oracle.dpc_knn(tokens, threshold=0.5, k=2, order="index")
    assert several["centres"] == [0, 1]
    assert hard_oracle.dpc_knn(tokens, threshold=99, min_clusters=3, k=2)["centres"] == [0, 1, 2]


@settings(max_examples=60)
@given(exact_tokens(torch.float32), peak_options(), st.data())
def test_exact_input_is_bit_equal_to_the_reference(backend, x, options, data):
    mask = data.draw(token_masks(x))
    noise = data.draw(exact_noise(x.shape[:2], torch.float32))
    judge(backend, x, options, exact=True, token_mask=mask, noise=noise)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=30)
@given(data=st.data(), options=peak_options())
def test_real_input_is_valid(backend, dtype, data, options):
    x = data.draw(real_tokens(dtype))
    noise = None
    if data.draw(st.booleans()):
        noise = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(0)) * 1e-3
    judge(backend, x, options, noise=noise)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=4),
    dim=st.sampled_from([1, 3, 17]),
    seed=st.integers(0, 999),
    exact=st.booleans(),
    options=peak_options(),
)
def test_ragged_batches(backend, lengths, dim, seed, exact, options):
    packed, cu_seqlens, padded, mask = testing.ragged_batch(lengths, dim, seed, exact)
    judge(backend, packed, options, exact, cu_seqlens=cu_seqlens)
    judge(backend, padded, options, exact, token_mask=mask)


@pytest.mark.parametrize("tokens, dim", [(300, 24), (729, 64), (1025, 7)])
def test_larger_images(backend, tokens, dim):
    x = testing.vit_like_tokens(2, tokens, dim, seed=3)
    mask = torch.rand(2, tokens, generator=torch.Generator().manual_seed(0)) < 0.9
    for cap in ("diameter", "eccentricity"):
        judge(backend, x, dict(num_clusters=64, cap=cap), token_mask=mask)


@settings(max_examples=40)
@given(st.integers(0, 2**16), st.integers(2, 12), peak_options())
def test_permuting_tokens_permutes_the_result(backend, seed, tokens, options):
    x = testing.integer_tokens(2, tokens, 3, seed, high=20) / 8
    options = options | dict(order="score")
    out = sk.dpc_knn(x, **options, backend=backend)
    for name in ("density", "score"):
        assume(all(row.unique().numel() == tokens for row in getattr(out, name)))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(tokens, generator=generator)
    moved = sk.dpc_knn(x[:, order], **options, backend=backend)
    for name in (*VALUES, "labels"):
        assert torch.equal(getattr(moved, name), getattr(out, name)[:, order]), name
    back = torch.where(moved.centres >= 0, order[moved.centres.clamp(min=0)], -1)
    assert torch.equal(back, out.centres) and torch.equal(moved.counts, out.counts)


@settings(max_examples=30)
@given(real_tokens(), peak_options())
def test_more_clusters_extend_the_same_prefix(backend, x, options):
    options = options | dict(order="score", min_clusters=1)
    more = sk.dpc_knn(x, **options | dict(num_clusters=9), backend=backend)
    for count in (1, 2, 5):
        fewer = sk.dpc_knn(x, **options | dict(num_clusters=count), backend=backend)
        assert torch.equal(fewer.centres, more.centres[:, :count])
        assert torch.equal(fewer.counts, more.counts.clamp(max=count))
        for name in (*VALUES, "knn", "parent"):
            assert torch.equal(getattr(fewer, name), getattr(more, name))


@settings(max_examples=40)
@given(exact_tokens(torch.float32), peak_options())
def test_order_changes_the_rows_only(backend, x, options):
    by_score, by_index = (
        sk.dpc_knn(x, **options | dict(order=order), backend=backend)
        for order in ("score", "index")
    )
    last = x.shape[1]
    centres = torch.where(by_score.centres < 0, last, by_score.centres).sort(1).values
    assert torch.equal(torch.where(by_index.centres < 0, last, by_index.centres), centres)

    def to_centre(out):
        centre = out.centres.gather(1, out.labels)
        return (x - x.gather(1, centre[:, :, None].expand_as(x))).square().sum(2)

    # A token as near to two centres goes to the first of them.
    assert torch.equal(to_centre(by_score), to_centre(by_index))


def test_density_and_distance_are_those_of_the_docstring(backend):
    x = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]]])
    out = sk.dpc_knn(x, 1, k=2, backend=backend)
    # |x_i - x_j| / sqrt(2) is 1, 2 and 3.
    torch.testing.assert_close(out.density[0], torch.exp(-torch.tensor([0.5, 0.5, 2.0])))
    assert out.delta[0].tolist() == [3, 1, 2]
    assert torch.equal(out.score, out.density * out.delta)
    assert out.parent[0].tolist() == [-1, 0, 1] and out.knn[0].tolist() == [[0, 1], [1, 0], [2, 1]]
    assert out.centres.tolist() == [[0]] and out.labels.tolist() == [[0, 0, 0]]


def test_cap(backend):
    """The top token is in the middle: the diameter is 9, the farthest token 5 away."""
    x = torch.tensor([[[0.0], [4.0], [4.0], [9.0]]])
    for cap, delta in (("diameter", 9), ("eccentricity", 5)):
        out = judge(backend, x, dict(num_clusters=2, k=1, cap=cap), exact=True)
        # Every density is 1 with k = 1, so token 0 is the top.
        assert out.parent[0, 0] == -1 and out.delta[0, 0] == delta
    noise = torch.tensor([[0.0, 0.0, 0.5, 0.0]])
    for cap, delta in (("diameter", 9), ("eccentricity", 5)):
        out = judge(backend, x, dict(num_clusters=2, k=1, cap=cap), exact=True, noise=noise)
        assert out.parent[0].tolist() == [2, 2, -1, 1] and out.delta[0, 2] == delta


def test_noise_breaks_ties(backend):
    x = torch.zeros(1, 4, 3)
    x[0, :, 0] = torch.arange(4)
    noise = torch.tensor([[0.0, 0.0, 0.25, 0.125]])
    out = judge(backend, x, dict(num_clusters=2, k=1), exact=True, noise=noise)
    assert out.density[0].tolist() == [1, 1, 1.25, 1.125]
    assert out.parent[0].tolist() == [2, 0, -1, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_of_another_dtype_keeps_that_of_the_values(backend, dtype):
    x = testing.integer_tokens(2, 6, 3, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    noise = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for given_dtype in (torch.float64, torch.float32, torch.float16):
        out = sk.dpc_knn(x, 2, noise=noise.to(given_dtype), backend=backend)
        assert out.density.dtype == out.delta.dtype == out.score.dtype == wide
        same = sk.dpc_knn(x, 2, noise=noise.to(given_dtype).to(wide), backend=backend)
        assert torch.equal(out.density, same.density)


def test_noise_of_a_grid_and_of_packed_tokens(backend):
    x = testing.integer_tokens(1, 6, 3)
    noise = torch.arange(6.0)[None] / 8
    flat = sk.dpc_knn(x, 2, noise=noise, backend=backend)
    grid = sk.dpc_knn(x.reshape(1, 2, 3, 3), 2, noise=noise.reshape(1, 2, 3), backend=backend)
    cu_seqlens = torch.tensor([0, 6], dtype=torch.int32)
    packed = sk.dpc_knn(x[0], 2, noise=noise[0], cu_seqlens=cu_seqlens, backend=backend)
    assert torch.equal(flat.density, grid.density)
    assert torch.equal(flat.density[0], packed.density)


def test_threshold_and_fewest_clusters(backend):
    """Two pairs far apart: two scores stand out."""
    x = torch.tensor([[[0.0], [0.5], [8.0], [8.5]]])
    for arguments, centres in [
        (dict(threshold=1.0), [0, 2, -1, -1]),
        (dict(threshold=1.0, num_clusters=1), [0]),
        (dict(threshold=1.0, num_clusters=6), [0, 2, -1, -1, -1, -1]),
        (dict(threshold=1.0, min_clusters=3), [0, 2, -1, -1]),
        (dict(threshold=99.0), [0, -1, -1, -1]),
        (dict(threshold=99.0, min_clusters=2), [0, 2, -1, -1]),
        (dict(threshold=99.0, min_clusters=9), [0, 2, 1, 3]),
        (dict(threshold=99.0, min_clusters=9, num_clusters=3), [0, 2, 1]),
        (dict(threshold=99.0, min_clusters=3, order="index"), [0, 1, 2, -1]),
        (dict(num_clusters=6), [0, 2, 1, 3, -1, -1]),
        (dict(num_clusters=6, min_clusters=9), [0, 2, 1, 3, -1, -1]),
        (dict(num_clusters=3, order="index"), [0, 1, 2]),
    ]:
        out = judge(backend, x, dict(k=2, num_clusters=None) | arguments, exact=True)
        assert out.centres[0].tolist() == centres, arguments
    score = sk.dpc_knn(x, 4, k=2, backend=backend).score[0]
    exactly = sk.dpc_knn(x, threshold=float(score[2]), k=2, backend=backend)
    assert exactly.counts.item() == 1, "a score equal to the threshold is not higher"


def test_planted_clusters_are_found(backend):
    x, member = testing.planted_clusters(3, 60, 16, 4, seed=5)
    out = judge(backend, x, dict(num_clusters=4))
    assert (testing.pair_agreement(out.labels, member) == 1).all()


def test_equal_tokens(backend):
    for value in (0.0, 0.1, 3.7e8, -1e-20):
        out = judge(backend, torch.full((2, 7, 5), value), dict(num_clusters=3), exact=True)
        assert (out.density == 1).all() and (out.delta == 0).all()
        assert out.centres.tolist() == [[0, 1, 2]] * 2
        assert out.labels.tolist() == [[0, 1, 2, 0, 0, 0, 0]] * 2
        assert out.parent[0].tolist() == [-1, 0, 0, 0, 0, 0, 0]


def test_one_token(backend):
    for cap in ("diameter", "eccentricity"):
        out = judge(backend, torch.ones(1, 1, 3), dict(num_clusters=2, cap=cap), exact=True)
        assert out.density.item() == 1 and out.delta.item() == 0 and out.parent.item() == -1
        assert out.knn.flatten().tolist() == [0, -1, -1, -1, -1]
        assert out.centres.tolist() == [[0, -1]] and out.labels.tolist() == [[0]]


@pytest.mark.parametrize("exponent", [-120, -70, 60, 115])
def test_huge_and_tiny_tokens(backend, exponent):
    """Delta is a distance: it is there where its square is not."""
    x = testing.integer_tokens(2, 12, 3)
    scaled = x * 2.0**exponent
    out = judge(backend, scaled, dict(num_clusters=4, k=1), exact=True)
    # All densities are 1 with k = 1: no other number depends on the size.
    expected = sk.dpc_knn(x, 4, k=1, backend=backend)
    testing.assert_same_hard_clusters(out, expected)
    assert torch.equal(out.delta, expected.delta * 2.0**exponent)
    judge(backend, testing.vit_like_tokens(2, 20, 6) * 2.0**exponent, dict(num_clusters=4))


def test_mixed_magnitudes_stay_finite(backend):
    x = testing.integer_tokens(1, 8, 3)
    x[0, 3] = 3e38
    for cap in ("diameter", "eccentricity"):
        judge(backend, x, dict(num_clusters=2, cap=cap))


def test_nothing_carries_gradient(backend):
    x = testing.integer_tokens(1, 6, 3).requires_grad_()
    noise = torch.zeros(1, 6, requires_grad=True)
    out = sk.dpc_knn(x, 2, noise=noise, backend=backend)
    assert not any(getattr(out, name).requires_grad for name in VALUES)


def raises(error, match):
    return pytest.raises(error, match=match)


X = torch.zeros(2, 5, 3)
CU = torch.tensor([0, 2, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({}, ValueError, r"num_clusters: expected a number, or else a rate or a thr"),
        (dict(num_clusters=0), ValueError, r"num_clusters: expected at least 1, got 0"),
        (dict(num_clusters=2.0), TypeError, r"num_clusters: expected an int, got 2.0"),
        (dict(num_clusters=True), TypeError, r"num_clusters: expected an int, got True"),
        (dict(num_clusters=2, k=0), ValueError, r"k: expected at least 1, got 0"),
        (dict(num_clusters=2, k=None), TypeError, r"k: expected an int, got None"),
        (dict(num_clusters=2, min_clusters=0), ValueError, r"min_clusters: expected at least 1"),
        (dict(num_clusters=2, order="size"), ValueError,
         r"order: expected one of score, index, got 'size'"),
        (dict(num_clusters=2, cap=None), ValueError,
         r"cap: expected one of diameter, eccentricity, got None"),
        (dict(threshold=float("nan")), ValueError, r"threshold: expected a finite number, got nan"),
        (dict(threshold="0.5"), TypeError, r"threshold: expected a real number, got '0.5'"),
        (dict(num_clusters=2, noise=0.1), TypeError, r"noise: expected a torch.Tensor, got float"),
        (dict(num_clusters=2, noise=torch.zeros(2, 5).int()), TypeError,
         r"noise: expected dtype float64, .* got torch.int32"),
        (dict(num_clusters=2, noise=torch.zeros(2, 4)), ValueError,
         r"noise: expected shape \(2, 5\), got \(2, 4\)"),
        (dict(num_clusters=2, noise=torch.zeros(2, 5, device="meta")), ValueError,
         r"noise: expected device cpu like x, got meta"),
        (dict(x=X[0], cu_seqlens=CU, num_clusters=2, noise=torch.zeros(2, 5)), ValueError,
         r"noise: expected shape \(5,\), got \(2, 5\)"),
    ],
)  # fmt: skip
def test_errors(arguments, error, match):
    with raises(error, match):
        sk.dpc_knn(**(dict(x=X) | arguments))


@pytest.mark.backends("reference", "cpp", "triton")
def test_the_cap_of_tokens_without_order(backend, regime):
    """Noise that is no number: nothing precedes such a token, and it precedes nothing."""
    x = testing.integer_tokens(1, 20, 5)
    noise = torch.zeros(1, 20)
    noise[0, [0, 7]] = torch.nan
    out = sk.dpc_knn(x, 5, k=3, cap="eccentricity", noise=noise, backend=backend)
    plain = sk.dpc_knn(x, 5, k=3, backend="reference").density[0]
    density = (plain + noise[0]).tolist()
    distance = torch.cdist(x[0].double(), x[0].double()) / 5**0.5
    farthest = distance.amax(1).tolist()
    for i in range(20):
        before = [
            j for j in range(20) if density[j] > density[i] or (density[j] == density[i] and j < i)
        ]
        cap = min(farthest[j] for j in range(20) if j not in before)
        near = min((distance[i, j].item() for j in before), default=float("inf"))
        assert out.delta[0, i].item() == pytest.approx(min(near, cap), rel=1e-6), i
        assert (out.parent[0, i] < 0) == (not before)
    assert not out.density[0, [0, 7]].isfinite().any()
