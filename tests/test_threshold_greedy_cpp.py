"""The compiled `threshold_greedy` against the reference."""

import pytest
import torch

import setok_kernels as sk
from setok_kernels import testing
from setok_kernels.reference.dpc_knn import nearest_centre

pytestmark = pytest.mark.skipif(
    sk.backends()["cpp"] is not None, reason="the compiled module is not there"
)

NAMES = ("centres", "counts", "labels")


def cluster(x, threshold, **kwargs):
    return sk.threshold_greedy(x, threshold, backend="cpp", **kwargs)


def assert_same(a, b):
    for name in NAMES:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def assert_like_reference(x, threshold, **kwargs):
    out = cluster(x, threshold, **kwargs)
    assert_same(out, sk.threshold_greedy(x, threshold, backend="reference", **kwargs))
    return out


def exact_directions(images, tokens, dim, seed=0, dtype=torch.float32):
    """(B, N, D) with 1, 4 or 16 coordinates of one magnitude, or none: norms and products exact.

    The magnitudes are powers of two. Similarities are multiples of 1/16, with many ties.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(images, tokens, dim, generator=generator).argsort(2)
    sizes = torch.tensor([0] + [size for size in (1, 4, 16) if size <= dim] * 8)
    size = sizes[torch.randint(len(sizes), (images, tokens, 1), generator=generator)]
    sign = 1 - 2 * torch.randint(2, (images, tokens, dim), generator=generator)
    power = torch.randint(-6, 7, (images, tokens, 1), generator=generator)
    return ((rank < size) * sign * 2.0**power).to(dtype)


THRESHOLDS = (-1.5, -0.25, 0.0, 0.25, 0.3, 0.75, 1.0, 3.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens, dim", [(1, 1), (2, 4), (32, 6), (33, 16), (130, 20), (300, 7)])
def test_exact_directions(tokens, dim, masked, dtype):
    x = exact_directions(2, tokens, dim, dtype=dtype)
    mask = None
    if masked:
        mask = torch.rand(2, tokens, generator=torch.Generator().manual_seed(0)) > 0.2
    if tokens > 30:
        x[0, 5, 1], x[1, 31, 0] = torch.nan, torch.inf
    for threshold in THRESHOLDS:
        out = assert_like_reference(x, threshold, token_mask=mask)
        if tokens > 30:
            assert out.labels[0, 5] == out.labels[1, 31] == -1


@pytest.mark.parametrize("threshold", [-0.25, 0.25, 0.75, 1.0])
def test_images_too_large_to_keep_similarities(threshold):
    x = exact_directions(1, 3100, 20)
    x[0, 7, 0] = torch.nan
    assert_like_reference(x, threshold)
    small = cluster(x[:, :3000], threshold)
    mask = torch.arange(3100) < 3000
    masked = cluster(x, threshold, token_mask=mask[None])
    assert torch.equal(masked.labels[:, :3000], small.labels)


def middle_of_a_gap(similarity, low, high):
    """A threshold in the widest gap between the similarities in [low, high], and its half width."""
    values = similarity.flatten().sort().values
    values = values[(values >= low) & (values <= high)]
    width, at = values.diff().max(0)
    return ((values[at] + values[at + 1]) / 2).item(), (width / 2).item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens, dim", [(60, 33), (150, 64), (250, 800)])
def test_real_tokens(tokens, dim, dtype):
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(1, tokens, 3, generator=generator) @ torch.randn(
        3, dim, generator=generator
    )
    x = (plane + torch.randn(1, tokens, dim, generator=generator) / 2).to(dtype)
    unit = torch.nn.functional.normalize(x.double(), dim=2)
    similarity = unit @ unit.mT
    # Of a product of unit vectors that were rounded themselves, summed in any order.
    wide = torch.promote_types(dtype, torch.float32)
    bound = (dim + 8) * torch.finfo(wide).eps
    ok = torch.ones(1, tokens, dtype=torch.bool)
    found = []
    for low, high in ((-0.1, 0.1), (0.3, 0.5), (0.6, 0.8)):
        threshold, gap = middle_of_a_gap(similarity, low, high)
        assert gap > bound
        out = cluster(x, threshold)
        # No rounding reaches the threshold, so there is one answer.
        exact = sk.threshold_greedy(x.double(), threshold, backend="reference")
        assert torch.equal(out.centres, exact.centres)
        live = out.centres[0, : out.counts[0]]
        best = nearest_centre(-similarity, ok, live[None])
        chosen = similarity[0, :, live].gather(1, out.labels[0, :, None])
        most = similarity[0, :, live].gather(1, best[0, :, None])
        assert (most - chosen <= bound).all()
        assert torch.equal(out.labels[0, live], torch.arange(len(live)))
        found.append(len(live))
    assert 1 < found[0] < found[2] < tokens


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("tokens, threshold", [(600, 0.5), (600, 0.9), (3100, 0.5)])
def test_the_number_of_threads_changes_no_bit(threads, images, tokens, threshold):
    x = testing.planted_clusters(images, tokens, 40, 9, noise=0.5)[0]
    threads(1)
    expected = cluster(x, threshold)
    assert (expected.counts > 1).all()
    for count in (2, 4):
        threads(count)
        assert_same(cluster(x, threshold), expected)


def test_packed_images_of_many_sizes():
    lengths = [300, 0, 1, 17, 120, 33]
    packed, cu_seqlens, padded, mask = testing.ragged_batch(lengths, 40)
    expected = cluster(padded, 0.5, token_mask=mask)
    for offsets in (cu_seqlens, cu_seqlens.long()):
        out = cluster(packed, 0.5, cu_seqlens=offsets)
        assert torch.equal(out.labels, expected.labels[mask])
        assert torch.equal(out.centres, expected.centres)
        assert torch.equal(out.counts, expected.counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_magnitudes_whose_squares_leave_the_range(dtype):
    """The largest and the smallest tokens of an image have directions like all others."""
    x = exact_directions(1, 120, 16, dtype=dtype)
    expected = cluster(x, 0.3)
    limits = torch.finfo(dtype)
    scale = torch.tensor([limits.max / 128, 1.0, limits.smallest_normal], dtype=dtype)
    far = x * scale.log2().floor().exp2()[torch.arange(120) % 3][:, None]
    assert_same(cluster(far, 0.3), expected)


def test_a_threshold_of_one_separates_equal_tokens():
    # Norms round, so that products of a token with itself may be more than 1.
    x = torch.rand(1, 1, 77, generator=torch.Generator().manual_seed(0)).expand(1, 50, 77)
    out = cluster(x, 1.0)
    assert out.counts.tolist() == [50] and torch.equal(out.labels[0], torch.arange(50))
    assert cluster(x, 0.999).counts.tolist() == [1]


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 1, 3), (1, 2, 1)])
@pytest.mark.parametrize("threshold", [-0.5, 0.5])
def test_few_tokens(shape, threshold):
    x = torch.arange(torch.Size(shape).numel()).reshape(shape).float()
    assert_like_reference(x, threshold)


def test_images_without_a_token():
    x = exact_directions(3, 40, 4)
    x[1] = torch.nan
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[2] = False
    out = assert_like_reference(x, 0.3, token_mask=mask)
    assert out.counts[0] > 0 and out.counts.tolist()[1:] == [0, 0]
    assert (out.labels[1:] == -1).all() and (out.centres[1:] == -1).all()


def test_the_operation_refuses_too_few_columns():
    x, cu_seqlens = torch.zeros(6, 2), torch.tensor([0, 4, 6])
    with pytest.raises(ValueError, match="max_seqlen: expected at least 4, got 3"):
        torch.ops.setok.threshold_greedy(x, None, cu_seqlens, 3, 0.5)
