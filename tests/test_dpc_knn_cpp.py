"""The compiled `dpc_knn`: decisions like the reference's on exact inputs, valid ones on others."""

import pytest
import torch

import setok_kernels as sk
from helpers.pairwise import pairwise
from setok_kernels import testing
from setok_kernels.config import DPCOptions
from setok_kernels.selection import choose_centres

pytestmark = pytest.mark.skipif(
    sk.backends()["cpp"] is not None, reason="the compiled module is not there"
)

DECISIONS = ("knn", "parent", "counts", "centres", "labels")
VALUES = ("density", "delta", "score")
OPTIONS = {
    "few": dict(num_clusters=7),
    # More rows than tokens, neighbours beyond those that are ranked by counting.
    "many": dict(num_clusters=900, k=70, cap="eccentricity"),
    "threshold": dict(threshold=0.4, order="index"),
    "both": dict(num_clusters=40, threshold=0.3, cap="eccentricity", order="index"),
    "fallback": dict(threshold=1e9, min_clusters=5, k=1),
}


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


def cluster(x, **kwargs):
    return sk.dpc_knn(x, backend="cpp", **kwargs)


def assert_same(a, b):
    for name in (*DECISIONS, *VALUES):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def assert_like_reference(x, **kwargs):
    """Equal decisions, ties included; the values may differ by how exp was rounded."""
    out, expected = cluster(x, **kwargs), sk.dpc_knn(x, backend="reference", **kwargs)
    # Noise may leave next to nothing of a density.
    atol = 1e-6 if "noise" in kwargs else 0
    for name in DECISIONS:
        assert torch.equal(getattr(out, name), getattr(expected, name)), name
    for name in VALUES:
        torch.testing.assert_close(
            getattr(out, name), getattr(expected, name), rtol=1e-6, atol=atol, equal_nan=True
        )
    return out


def exact_tokens(kind, dtype=torch.float32):
    return {
        "integers": lambda: testing.integer_tokens(2, 600, 30, high=2, dtype=dtype),
        "duplicates": lambda: testing.duplicate_tokens(2, 700, 24, distinct=50, dtype=dtype),
        "one hot": lambda: testing.one_hot_tokens(2, 600, 40, dtype=dtype),
        "equal": lambda: torch.ones(2, 600, 50, dtype=dtype),
        "small": lambda: testing.integer_tokens(3, 20, 4, dtype=dtype),
    }[kind]()


def random_mask(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.2


@pytest.mark.parametrize(
    "regime, options, kind, masked",
    pairwise(
        regime=["dense", "streaming"],
        options=OPTIONS.values(),
        kind=["integers", "duplicates", "one hot", "equal", "small"],
        masked=[False, True],
    ),
    indirect=["regime"],
)
def test_exact_tokens(regime, options, kind, masked):
    x = exact_tokens(kind)
    x[0, 5, 1] = torch.nan
    mask = random_mask(x.shape[:2]) if masked else None
    out = assert_like_reference(x, token_mask=mask, **options)
    assert out.labels[0, 5] == -1 and (out.knn != 5)[0].all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_exact_tokens_of_other_dtypes(regime, options, dtype):
    assert_like_reference(exact_tokens("integers", dtype), **options)


@pytest.mark.parametrize("special", [(), (torch.nan,), (torch.inf, -torch.inf), (-7.0, torch.nan)])
def test_noise_changes_the_order(regime, options, special):
    """Any noise: densities below those that stand for no token, and such as have no order."""
    x = testing.integer_tokens(2, 130, 8)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-3, 4, (2, 130), generator=generator) / 4
    for first, value in enumerate(special):
        noise[:, first::7] = value
    out = assert_like_reference(x, noise=noise, **options)
    plain = cluster(x, **options)
    assert torch.equal(out.knn, plain.knn)
    torch.testing.assert_close(out.density, plain.density + noise, equal_nan=True)
    assert not torch.equal(out.parent, plain.parent)


@pytest.mark.parametrize("low", [-7.0, -torch.inf])
def test_noise_that_puts_all_tokens_below_absent_ones(regime, options, low):
    """What stands behind the last token is the parent of none."""
    x = testing.integer_tokens(1, 130, 8)
    out = assert_like_reference(x, noise=torch.full((1, 130), low), **options)
    assert (out.parent == -1).sum() == 1 and out.delta.isfinite().all()


def test_noise_of_a_packed_batch_and_of_another_dtype():
    packed, cu_seqlens, padded, mask = testing.ragged_batch([40, 0, 9], 6, exact=True)
    noise = torch.randint(0, 5, packed.shape[:1], generator=torch.Generator().manual_seed(0)) / 8
    spread = torch.zeros(mask.shape)
    spread[mask] = noise
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        out = cluster(packed, num_clusters=5, cu_seqlens=cu_seqlens, noise=noise.to(dtype))
        expected = cluster(padded, num_clusters=5, token_mask=mask, noise=spread)
        assert torch.equal(out.centres, expected.centres)
        assert torch.equal(out.score, expected.score[mask])


@pytest.mark.parametrize(
    "regime, options, dtype, shape",
    pairwise(
        regime=["dense", "streaming"],
        options=OPTIONS.values(),
        dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
        shape=[(300, 64), (729, 96), (1100, 37), (120, 800)],
    ),
    indirect=["regime"],
)
def test_many_tokens(regime, options, dtype, shape):
    tokens, dim = shape
    x = testing.planted_clusters(1, tokens, dim, 9, noise=0.3, dtype=dtype)[0]
    out = cluster(x, **options)
    chosen = DPCOptions(**{"k": 5, **options})
    exact = x[0].double()
    squared = torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist").square()
    # A distance errs as the inner products and norms that it is made of do.
    roundoff = torch.finfo(out.density.dtype).eps / 2
    error = 4 * (dim + 3) * roundoff * exact.square().sum(1).max() / dim

    near = squared.sort(dim=1).values[:, : chosen.k].mean(1) / dim
    assert ((out.density[0] - near.neg().exp()).abs() <= error + 4 * roundoff).all()
    assert ((squared.gather(1, out.knn[0]).mean(1) / dim - near).abs() <= error).all()

    # Each step is judged by what the one before has found.
    rho, token = out.density[0], torch.arange(tokens)
    higher = (rho > rho[:, None]) | ((rho == rho[:, None]) & (token < token[:, None]))
    top = ~higher.any(1)
    assert top.sum() == 1 and out.parent[0, top] == -1
    nearest = squared.masked_fill(~higher, torch.inf).amin(1) / dim
    attained = squared.gather(1, out.parent[0].clamp(min=0)[:, None])[:, 0] / dim
    assert ((attained - nearest).abs() <= error)[~top].all()
    farthest = squared.amax(1) / dim
    cap = farthest.max().expand(tokens)
    if chosen.cap == "eccentricity":
        cap = torch.where(higher, torch.inf, farthest).amin(1)
    assert ((out.delta[0].double().square() - torch.minimum(nearest, cap)).abs() <= error).all()

    assert torch.equal(out.score, out.density * out.delta)
    centres, counts = choose_centres(
        out.score,
        torch.ones(1, tokens, dtype=torch.bool),
        chosen.num_clusters or tokens,
        -torch.inf if chosen.threshold is None else chosen.threshold,
        chosen.min_clusters,
        chosen.order == "index",
    )
    assert torch.equal(out.centres, centres) and torch.equal(out.counts, counts)
    live = centres[0, : counts[0]]
    assert torch.equal(out.labels[0, live], torch.arange(len(live)))
    far = squared[:, live] / dim
    assert (far.gather(1, out.labels[0, :, None])[:, 0] - far.amin(1) <= error).all()


@pytest.mark.parametrize("images", [1, 3])
def test_the_number_of_threads_changes_no_bit(regime, options, threads, images):
    x = testing.vit_like_tokens(images, 600, 130)
    threads(1)
    expected = cluster(x, **options)
    for count in (2, 4):
        threads(count)
        assert_same(cluster(x, **options), expected)


def test_packed_images_of_many_sizes(regime, options):
    lengths = [300, 0, 1, 17, 120, 33]
    packed, cu_seqlens, padded, mask = testing.ragged_batch(lengths, 40)
    expected = cluster(padded, token_mask=mask, **options)
    for offsets in (cu_seqlens, cu_seqlens.long()):
        out = cluster(packed, cu_seqlens=offsets, **options)
        for name in ("knn", "parent", "labels", *VALUES):
            assert torch.equal(getattr(out, name), getattr(expected, name)[mask]), name
        assert torch.equal(out.counts, expected.counts)
        assert torch.equal(out.centres, expected.centres)


@pytest.mark.parametrize("magnitude", [2.0**-140, 2.0**-60, 2.0**60, 2.0**120])
def test_magnitudes_whose_squares_leave_the_range(regime, options, magnitude):
    out = assert_like_reference(testing.integer_tokens(1, 200, 12) * magnitude, **options)
    assert all(getattr(out, name).isfinite().all() for name in VALUES)


@pytest.mark.parametrize("shape", [(2, 1, 3), (1, 2, 1)])
def test_few_tokens(regime, options, shape):
    x = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape).float()
    out = assert_like_reference(x, **options)
    assert (out.counts == min(out.centres.shape[1], shape[1])).all() or "threshold" in options


def test_images_without_a_token(regime, options):
    x = testing.integer_tokens(3, 40, 4)
    x[1] = torch.inf
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[2] = False
    out = assert_like_reference(x, token_mask=mask, **options)
    assert out.counts.tolist()[1:] == [0, 0] and out.counts[0] > 0
    for name in ("labels", "centres", "knn", "parent"):
        assert (getattr(out, name)[1:] == -1).all()
    assert not out.density[1:].any() and not out.delta[1:].any() and not out.score[1:].any()


def test_the_operation_refuses_noise_that_does_not_fit():
    x = torch.zeros(1, 4, 2)
    rest = (2, 2, -torch.inf, 1, False, False, 0)
    for noise, misfit in (
        (torch.zeros(1, 3), r"shape \(1, 4\), got \(1, 3\)"),
        (torch.zeros(1, 4).double(), "dtype float32, got float64"),
        (torch.zeros(1, 4, 2)[..., 0], r"a contiguous tensor, got strides \(8, 2\)"),
    ):
        with pytest.raises(ValueError, match=f"noise: expected {misfit}"):
            torch.ops.setok.dpc_knn(x, None, None, 4, noise, None, None, *rest)
