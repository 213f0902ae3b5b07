"""`dpc_knn` and `threshold_greedy` on the Triton backend, in the interpreter."""

import dataclasses
import os

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter; -m gpu has those for a GPU", allow_module_level=True)

import setok_kernels as sk
from helpers import interpreter
from helpers.pairwise import pairwise
from setok_kernels import testing
from setok_triton import configs, threshold_greedy

interpreter.repair()
# NumPy warns of what the kernels mask away.
pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

OPS = torch.ops.setok_interpreted
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VALUES = ("density", "delta", "score")
OPTIONS = {
    "count": dict(num_clusters=7),
    "threshold": dict(threshold=1.2, k=3, order="index", cap="eccentricity"),
}


def sign_tokens(images, tokens, dim, seed=0, dtype=torch.float32):
    """(B, N, D) with 4 or 16 entries of 1 or -1: norms are powers of two, every cosine is exact."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(images, tokens, dim, generator=generator).argsort(2)
    entries = torch.where(torch.rand(images, tokens, 1, generator=generator) < 0.5, 4, 16)
    signs = torch.randint(0, 2, (images, tokens, dim), generator=generator) * 2 - 1
    return torch.where(order < entries, signs, 0).to(dtype)


def assert_same(got, expected):
    """Decisions bit for bit; values by the rounding of exp."""
    for field in dataclasses.fields(got):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        if field.name in VALUES:
            torch.testing.assert_close(a, b, rtol=2e-6, atol=0)
        elif isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), field.name
        else:
            assert a == b, field.name


def check_dpc(x, **options):
    out = sk.dpc_knn(x, backend="triton", **options)
    assert_same(out, sk.dpc_knn(x, backend="reference", **options))
    return out


def check_greedy(x, threshold, **options):
    out = sk.threshold_greedy(x, threshold, backend="triton", **options)
    assert_same(out, sk.threshold_greedy(x, threshold, backend="reference", **options))
    return out


def some_masked(x):
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(0)) > 0.2
    mask[0] = True
    return mask


@pytest.mark.parametrize(
    "regime, name, kind",
    pairwise(
        regime=["dense", "streaming"],
        name=OPTIONS,
        kind=["integers", "duplicates", "one hot", "equal"],
    ),
    indirect=["regime"],
)
def test_peaks_of_exact_tokens(regime, name, kind):
    """Several tiles of rows and columns, ragged at the end; one image with a mask."""
    x = {
        "integers": lambda: testing.integer_tokens(2, 70, 5),
        "duplicates": lambda: testing.duplicate_tokens(2, 35, 9, distinct=12),
        "one hot": lambda: testing.one_hot_tokens(2, 20, 12),
        "equal": lambda: torch.full((2, 20, 3), 0.1),
    }[kind]()
    check_dpc(x, token_mask=some_masked(x), **OPTIONS[name])


@pytest.mark.parametrize(
    "dtype, options",
    list(zip(DTYPES, [*OPTIONS.values(), OPTIONS["count"]], strict=True)),
    ids=str,
)
def test_peaks_of_real_tokens(regime, dtype, options):
    """Wider tiles, and features that end within a block."""
    x = testing.planted_clusters(1, 140, 37, 6, noise=0.3)[0].to(dtype)
    out = sk.dpc_knn(x, backend="triton", **options)
    expected = sk.dpc_knn(x, backend="reference", **options)
    for name in ("labels", "centres", "counts", "knn", "parent"):
        assert torch.equal(getattr(out, name), getattr(expected, name)), name
    for name in VALUES:
        torch.testing.assert_close(getattr(out, name), getattr(expected, name), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        dict(num_clusters=15, k=14),
        dict(threshold=1e9, min_clusters=3),
        dict(threshold=1e9, min_clusters=50, num_clusters=4, order="index"),
        dict(threshold=-1.0),
        dict(num_clusters=1, k=1, cap="eccentricity"),
    ],
    ids=str,
)
def test_numbers_of_centres(options):
    """More neighbours and centres than tokens; a threshold that none passes, one that all do."""
    x = testing.integer_tokens(2, 12, 4)
    mask = torch.arange(12) < torch.tensor([[12], [3]])
    check_dpc(x, token_mask=mask, **options)


def test_more_centres_than_a_tile():
    """Tokens equal to a centre go to the first of these, but a centre stays with itself."""
    x = testing.duplicate_tokens(2, 80, 5, distinct=60)
    mask = torch.arange(80) < torch.tensor([[80], [9]])
    out = check_dpc(x, num_clusters=70, k=2, token_mask=mask)
    assert out.counts.tolist() == [70, 9]
    own = out.labels.gather(1, out.centres.clamp(min=0))
    assert torch.equal(own[0], torch.arange(70)) and (own[1, :9] == torch.arange(9)).all()


@pytest.mark.parametrize("cap", ["diameter", "eccentricity"])
def test_noise_breaks_ties(regime, cap):
    x = testing.one_hot_tokens(2, 14, 4)
    mask = some_masked(x)
    noise = 1e-2 * torch.rand(2, 14, generator=torch.Generator().manual_seed(1)) - 5e-3
    # A density below 0 is still above that of an excluded token.
    noise[0, 3] = -2.0
    plain = check_dpc(x, num_clusters=5, token_mask=mask, cap=cap)
    noise[~mask] = torch.nan
    out = check_dpc(x, num_clusters=5, token_mask=mask, noise=noise, cap=cap)
    assert not torch.equal(out.centres, plain.centres)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_peaks_of_ragged_batches(regime, options):
    packed, cu_seqlens, padded, mask = testing.ragged_batch([3, 0, 1, 35], 9, exact=True)
    noise = torch.rand(packed.shape[0], generator=torch.Generator().manual_seed(0)) * 1e-3
    given = dict(cu_seqlens=cu_seqlens, max_seqlen=35)
    out = check_dpc(packed, noise=noise, **given, **options)
    spread = torch.zeros(mask.shape).masked_scatter(mask, noise)
    same = sk.dpc_knn(padded, noise=spread, token_mask=mask, backend="triton", **options)
    assert torch.equal(same.centres, out.centres)
    for name in ("labels", "knn", "parent", *VALUES):
        assert torch.equal(getattr(same, name)[mask], getattr(out, name)), name


def test_a_chunk_is_a_part_of_the_batch(monkeypatch):
    x = testing.integer_tokens(5, 14, 8)
    packed, cu_seqlens, _, _ = testing.ragged_batch([14, 7, 0, 14, 12], 8, exact=True)
    monkeypatch.setattr(configs, "DENSE_BYTES", 2 * 4 * 14 * 14)
    assert configs.dense_images(5, 14, 14) == 2
    check_dpc(x, **OPTIONS["count"])
    check_dpc(packed, cu_seqlens=cu_seqlens, **OPTIONS["threshold"])
    check_dpc(packed, cu_seqlens=cu_seqlens, **OPTIONS["count"])
    monkeypatch.setattr(configs, "DENSE_BYTES", 2 * 4 * 14)
    assert configs.adjacency_images(5, 14) == 2
    check_greedy(sign_tokens(5, 14, 20), 0.2)
    check_greedy(packed, 0.5, cu_seqlens=cu_seqlens)


def test_non_finite_tokens(regime):
    x = testing.integer_tokens(2, 12, 5)
    x[0, 3, 1], x[0, 0, 0], x[1, :] = torch.nan, torch.inf, torch.nan
    for options in OPTIONS.values():
        out = check_dpc(x, **options)
        assert out.counts[1] == 0 and out.labels[0, [0, 3]].tolist() == [-1, -1]
    out = check_greedy(x, 0.5)
    assert out.counts[1] == 0 and out.labels[0, [0, 3]].tolist() == [-1, -1]


@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-20, 2.0**40, 2.0**123])
def test_peaks_of_any_magnitude(regime, scale):
    x = testing.integer_tokens(1, 12, 5) * scale
    for options in OPTIONS.values():
        check_dpc(x, **options)


@pytest.mark.parametrize(
    "threshold, dtype",
    [(t, torch.float32) for t in (-1.0, -0.25, 0.0, 0.25, 0.5, 1.0)]
    + [(0.25, torch.bfloat16), (0.25, torch.float16)],
    ids=str,
)
def test_greedy_on_exact_tokens(threshold, dtype):
    """Three tiles, cosines that equal the threshold, zero vectors, a mask."""
    x = sign_tokens(2, 70, 20, dtype=dtype)
    x[0, 5], x[1, 60:] = 0, 0
    check_greedy(x, threshold, token_mask=some_masked(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_greedy_on_real_tokens(dtype):
    x = testing.planted_clusters(1, 140, 37, 6, noise=0.5)[0].to(dtype)
    out = check_greedy(x, 0.75)
    assert 6 <= out.counts[0] < 40


def test_every_token_is_a_centre_from_a_threshold_of_one_on():
    """Even where rounding carries the cosine of equal tokens above 1."""
    x = torch.randn(1, 20, 37, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1)
    for threshold in (1.0, 1.5):
        out = check_greedy(x, threshold)
        assert torch.equal(out.labels[0], torch.arange(40))
    assert check_greedy(torch.zeros(1, 20, 3), 0.5).counts.tolist() == [20]


def test_greedy_on_tokens_of_every_magnitude():
    """A power of two for each token changes nothing, to the ends of float32."""
    x = sign_tokens(2, 50, 20)
    expected = check_greedy(x, 0.25)
    power = torch.randint(-149, 128, (2, 50, 1), generator=torch.Generator().manual_seed(0))
    # Subnormal factors first, or they would be 0.
    scaled = x * torch.exp2((power // 2).float()) * torch.exp2((power - power // 2).float())
    assert scaled.isfinite().all() and torch.equal(scaled.sign(), x.sign())
    out = sk.threshold_greedy(scaled, 0.25, backend="triton")
    assert_same(out, expected)


def test_greedy_on_ragged_batches():
    _, cu_seqlens, _, mask = testing.ragged_batch([20, 0, 1, 40, 3], 4)
    padded = sign_tokens(5, 40, 20)
    packed = padded[mask]
    out = check_greedy(packed, 0.2, cu_seqlens=cu_seqlens, max_seqlen=40)
    same = check_greedy(padded, 0.2, token_mask=mask)
    assert torch.equal(same.centres, out.centres) and torch.equal(same.labels[mask], out.labels)


def test_greedy_walks_blocks_of_many_tokens(monkeypatch):
    """Ties between blocks as well go to the lowest index."""
    small = configs.TokenConfig(block_n=16, block_d=1, num_warps=4)
    monkeypatch.setattr(threshold_greedy, "claim_config", lambda tokens: small)
    check_greedy(sign_tokens(2, 70, 20), 0.2)
    assert configs.claim_config(65536).block_n == 4096


@pytest.mark.parametrize(
    "view, limit",
    [
        ("features first", 0),
        ("steps", 2048),
        ("expanded", 0),
        ("far apart", 0),
        ("far apart", 2048),
    ],
)
def test_strides(view, limit):
    """Of the operations themselves: the public functions make their input contiguous."""
    x = sign_tokens(2, 18, 18, dtype=torch.bfloat16)
    x = {
        "features first": lambda: x.transpose(1, 2),
        "steps": lambda: x[:, ::2, ::3],
        "expanded": lambda: x[:1].expand(2, -1, -1),
        "far apart": lambda: interpreter.far_apart(x[:1]),
    }[view]()
    tokens, plain = x.shape[1], x.contiguous()
    rest = (None, None, tokens, *[None] * 3, 3, 5, -torch.inf, 1, False, True, limit)
    for a, b in zip(OPS.dpc_knn(x, *rest), OPS.dpc_knn(plain, *rest), strict=True):
        assert torch.equal(a, b)
    rest = (None, None, tokens, 0.2)
    for a, b in zip(
        OPS.threshold_greedy(x, *rest), OPS.threshold_greedy(plain, *rest), strict=True
    ):
        assert torch.equal(a, b)


def test_operations_pass_opcheck():
    x, valid = testing.vit_like_tokens(2, 12, 6), torch.arange(24).view(2, 12) != 3
    dpc = (
        x,
        valid,
        None,
        12,
        torch.rand(2, 12),
        None,
        None,
        3,
        4,
        -torch.inf,
        1,
        False,
        True,
        2048,
    )
    torch.library.opcheck(OPS.dpc_knn.default, dpc)
    packed = (x.flatten(0, 1), None, torch.tensor([0, 5, 24], dtype=torch.int32), 19)
    torch.library.opcheck(OPS.threshold_greedy.default, (*packed, 0.5))


def test_float64_says_what_to_do():
    x = torch.zeros(1, 4, 2, dtype=torch.float64)
    for call in (
        lambda: sk.dpc_knn(x, 2, backend="triton"),
        lambda: sk.threshold_greedy(x, 0.5, backend="triton"),
    ):
        with pytest.raises(RuntimeError, match=r"expected float32, bfloat16 or float16.*reference"):
            call()
