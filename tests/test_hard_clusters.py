"""What dpc_knn and threshold_greedy have in common: layouts, empty input, determinism, merging."""

import itertools

import pytest
import torch

import setok_kernels as sk
from helpers.pairwise import pairwise
from setok_kernels import testing

OPTIONS = {
    "peaks": dict(num_clusters=4, k=3),
    "capped peaks": dict(threshold=0.4, min_clusters=2, order="index", cap="eccentricity"),
    "greedy": dict(threshold=0.25),
}


@pytest.fixture(params=OPTIONS)
def cluster(request, backend):
    """A clustering of given tokens."""
    operation = sk.threshold_greedy if request.param == "greedy" else sk.dpc_knn

    def run(x, **arguments):
        out = operation(x, **OPTIONS[request.param], **arguments, backend=backend)
        testing.assert_hard_invariants(x, out, arguments.get("token_mask"))
        return out

    return run


def tensors(out):
    """Tensors of a result with a value or a row of them for each token; the others."""
    names = ["labels", *(["density", "delta", "score", "knn", "parent"] * hasattr(out, "knn"))]
    return {n: getattr(out, n) for n in names}, dict(centres=out.centres, counts=out.counts)


def assert_bit_equal(a, b):
    for mine, other in zip(tensors(a), tensors(b), strict=True):
        for name, value in mine.items():
            assert torch.equal(value, other[name]), name


def rows_of(out, b, columns):
    """Centres of an image, padded or cut to the columns of another result."""
    centres = torch.nn.functional.pad(out.centres[b], (0, max(0, columns - out.num_rows)), value=-1)
    assert (centres[columns:] == -1).all()
    return centres[:columns]


# Norms of 0, 1, 2 and 4: the cosines are exact.
def exact_batch(lengths):
    """`testing.ragged_batch` of tokens on which results are the same bits in every layout."""
    _, cu_seqlens, padded, mask = testing.ragged_batch(lengths, 4, exact=True)
    signs = torch.where(padded > 0, 1.0, -1.0) * (padded[..., :1] != 2)
    padded = torch.where(mask[:, :, None], signs, 1e4)
    return padded[mask], cu_seqlens, padded, mask


@pytest.mark.parametrize("lengths", [[7, 0, 12, 1], [5], [3, 9, 9]])
def test_packed_equals_padded_equals_loop(cluster, lengths):
    packed, cu_seqlens, padded, mask = exact_batch(lengths)
    one, two = cluster(packed, cu_seqlens=cu_seqlens), cluster(padded, token_mask=mask)
    assert one.max_seqlen == max(lengths) and one.cu_seqlens is cu_seqlens
    tokens, rows = tensors(two)
    for name, value in tensors(one)[0].items():
        assert torch.equal(value, tokens[name][mask]), name
    for name, value in tensors(one)[1].items():
        assert torch.equal(value, rows[name]), name
    for b, (start, end) in enumerate(itertools.pairwise(cu_seqlens)):
        alone = cluster(packed[None, start:end])
        for name, value in tensors(alone)[0].items():
            assert torch.equal(value[0], getattr(one, name)[start:end]), name
        assert alone.counts[0] == one.counts[b]
        assert torch.equal(rows_of(one, b, alone.num_rows), alone.centres[0])


@pytest.mark.parametrize("garbage", [1e30, torch.nan, torch.inf])
def test_padding_changes_nothing(cluster, garbage):
    _, _, padded, _ = exact_batch([11, 11])
    more = torch.cat([padded, torch.full((2, 6, 4), garbage)], 1)
    mask = torch.arange(17).expand(2, -1) < 11
    plain, out = cluster(padded), cluster(more, token_mask=mask)
    for name, value in tensors(plain)[0].items():
        assert torch.equal(value, getattr(out, name)[:, :11]), name
    assert torch.equal(plain.counts, out.counts)
    for b in range(2):
        assert torch.equal(rows_of(out, b, plain.num_rows), plain.centres[b])


def test_masked_tokens_are_not_there(cluster):
    """Between the others too: their indices stay, and nothing else of them."""
    _, _, x, _ = exact_batch([12, 12])
    mask = torch.arange(12).expand(2, -1) % 3 != 1
    out, without = cluster(x, token_mask=mask), cluster(x[:, mask[0]])
    position = torch.tensor([*mask[0].nonzero()[:, 0].tolist(), -1])
    for name, value in tensors(without)[0].items():
        moved = position[value] if name in ("knn", "parent") else value
        assert torch.equal(getattr(out, name)[:, mask[0]], moved), name
    for b in range(2):
        assert torch.equal(rows_of(out, b, without.num_rows), position[without.centres[b]])


@pytest.mark.parametrize(
    "bad, dtype",
    [
        (torch.nan, torch.float32),
        (torch.nan, torch.bfloat16),
        (torch.inf, torch.float32),
        (-torch.inf, torch.bfloat16),
    ],
)
def test_non_finite_tokens_are_as_masked_ones(cluster, bad, dtype):
    _, _, x, _ = exact_batch([12, 12])
    broken = x.to(dtype)
    broken[1, 5, 2] = bad
    out = cluster(broken)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 5] = False
    assert_bit_equal(out, cluster(x.to(dtype), token_mask=mask))
    assert out.labels[1, 5] == -1
    with pytest.raises(ValueError, match=r"x: .*non-finite one in image 1, token 5"):
        cluster(broken, check_finite=True)
    cluster(broken, token_mask=mask, check_finite=True)


def test_only_tokens_that_take_no_part(cluster):
    for x, mask in [
        (torch.full((1, 3, 2), torch.nan), None),
        (torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool)),
    ]:
        out = cluster(x, token_mask=mask)
        assert out.counts.tolist() == [0] and (out.centres == -1).all()
        assert out.labels.tolist() == [[-1, -1, -1]]
        merged = sk.merge_tokens(x, out)
        assert merged.shape == (1, out.num_rows, 2) and (merged == 0).all()
        assert out.pack(merged)[0].shape == (0, 2)
        assert (sk.unmerge_tokens(merged, out) == 0).all()


def test_empty(cluster, regime):
    for shape in ((2, 0, 3), (0, 4, 3), (0, 0, 3), (0, 2, 3, 3), (2, 0, 3, 3)):
        x = torch.zeros(shape)
        out = cluster(x)
        assert out.labels.shape == (shape[0], torch.Size(shape[1:-1]).numel())
        assert out.counts.eq(0).all() and out.centres.eq(-1).all()
        merged = sk.merge_tokens(x, out)
        assert merged.shape == (shape[0], out.num_rows, 3)
        packed, offsets = out.pack(merged)
        assert packed.shape == (0, 3) and offsets.tolist() == [0] * (shape[0] + 1)
        assert sk.unmerge_tokens(merged, out).shape == shape


def test_empty_packed(cluster, regime):
    for lengths in ([], [0], [0, 0], [0, 3, 0]):
        packed, cu_seqlens, _, _ = exact_batch(lengths)
        out = cluster(packed, cu_seqlens=cu_seqlens)
        assert out.counts.shape == (len(lengths),)
        merged = sk.merge_tokens(packed, out)
        assert merged.shape == (len(lengths), out.num_rows, 4)
        assert sk.unmerge_tokens(merged, out).shape == packed.shape


def test_grid(cluster):
    _, _, x, _ = exact_batch([12, 12])
    grid = x.reshape(2, 3, 4, 4)
    out, flat = cluster(grid), cluster(x)
    assert out.grid == (3, 4) and flat.grid is None
    assert_bit_equal(out, flat)
    mask = torch.arange(12).expand(2, -1) < 7
    masked = cluster(grid, token_mask=mask.reshape(2, 3, 4))
    assert torch.equal(masked.labels == -1, ~mask)
    merged = sk.merge_tokens(grid, out)
    assert torch.equal(merged, sk.merge_tokens(x, flat))
    assert sk.unmerge_tokens(merged, out).shape == grid.shape


@pytest.mark.parametrize("dtype", [torch.float16])
def test_strides_do_not_matter(cluster, dtype):
    x = testing.integer_tokens(2, 10, 6, dtype=dtype)
    expected = cluster(x)
    variants = {
        "channels first": x.mT.contiguous().mT,
        "every other": torch.stack([x, x + 1], 3).reshape(2, 10, 12)[..., ::2],
        "tokens first": x.transpose(0, 1).contiguous().transpose(0, 1),
    }
    for name, view in variants.items():
        assert not view.is_contiguous(), name
        assert_bit_equal(cluster(view), expected)
    wide = cluster(x[:1].expand(3, -1, -1))
    assert torch.equal(wide.labels[2], expected.labels[0])
    mask = torch.ones(10, 2, dtype=torch.bool).T
    assert_bit_equal(cluster(x, token_mask=mask), expected)


@pytest.mark.backends("reference", "cpp")
def test_the_same_every_time(cluster):
    x = testing.vit_like_tokens(2, 200, 32)
    first = cluster(x)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 4, 1, threads):
            torch.set_num_threads(count)
            assert_bit_equal(cluster(x), first)
    finally:
        torch.set_num_threads(threads)


def test_autocast_changes_nothing(cluster):
    x = testing.vit_like_tokens(2, 20, 16)
    plain = cluster(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = cluster(x)
    assert_bit_equal(inside, plain)


def test_input_that_wants_a_gradient(cluster):
    x = testing.vit_like_tokens(2, 20, 6).requires_grad_()
    assert_bit_equal(cluster(x), cluster(x.detach()))


@pytest.mark.backends("reference", "cpp")
@pytest.mark.parametrize(
    "dtype, weighted",
    pairwise(dtype=[torch.float64, torch.float32, torch.bfloat16], weighted=[False, True]),
)
def test_merge_is_the_mean_of_the_members(cluster, backend, dtype, weighted):
    x = testing.planted_clusters(3, 20, 6, 4, noise=0.2, dtype=dtype)[0]
    mask = torch.arange(20) < torch.tensor([20, 13, 0])[:, None]
    out = cluster(x, token_mask=mask)
    weights = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) if weighted else None
    merged = sk.merge_tokens(x, out, weights=weights, backend=backend)
    assert merged.dtype == dtype and merged.shape == (3, out.num_rows, 6)
    tolerance = dict(
        rtol=2 * torch.finfo(dtype).eps, atol=1e-12 if dtype == torch.float64 else 1e-5
    )
    for b, c in itertools.product(range(3), range(out.num_rows)):
        pick = out.labels[b] == c
        w = torch.ones(20) if weights is None else weights[b]
        w = w[pick].double()[:, None]
        expected = (w * x[b, pick].double()).sum(0) / w.sum() if pick.any() else torch.zeros(6)
        torch.testing.assert_close(merged[b, c], expected.to(dtype), **tolerance)
    packed, offsets = out.pack(merged)
    assert offsets.diff().tolist() == out.counts.tolist(), "every centre has itself as a member"
    assert torch.equal(packed, torch.cat([merged[b, :n] for b, n in enumerate(out.counts)]))
    spread = sk.unmerge_tokens(merged, out, backend=backend)
    for b, i in itertools.product(range(3), range(20)):
        label = int(out.labels[b, i])
        expected = merged[b, label] if label >= 0 else torch.zeros(6, dtype=dtype)
        assert torch.equal(spread[b, i], expected)


@pytest.mark.backends("reference", "cpp")
def test_gradients_of_merge_and_unmerge(cluster, backend):
    x = testing.planted_clusters(2, 14, 3, 4, noise=0.2, dtype=torch.float64)[0].requires_grad_()
    weights = torch.rand(2, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights.requires_grad_()
    mask = torch.arange(14) < torch.tensor([14, 9])[:, None]
    out = cluster(x, token_mask=mask)
    member = torch.nn.functional.one_hot(out.labels + 1, out.num_rows + 1)[..., 1:].mT.double()

    def by_hand(x, weights):
        share = member * weights[:, None]
        mass = share.sum(2, keepdim=True)
        merged = share @ x / torch.where(mass > 0, mass, 1)
        return merged, member.mT @ merged

    def ours(x, weights):
        merged = sk.merge_tokens(x, out, weights=weights, backend=backend)
        return merged, sk.unmerge_tokens(merged, out, backend=backend)

    draw = torch.Generator().manual_seed(1)
    factors = [torch.randn(t.shape, dtype=t.dtype, generator=draw) for t in ours(x, weights)]

    def gradients(run):
        loss = sum((value * f).sum() for value, f in zip(run(x, weights), factors, strict=True))
        return torch.autograd.grad(loss, (x, weights))

    for got, expected in zip(gradients(ours), gradients(by_hand), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        assert (got != 0).any()


def test_merge_of_packed_tokens(cluster, backend):
    packed, cu_seqlens, padded, mask = exact_batch([7, 0, 12])
    one, two = cluster(packed, cu_seqlens=cu_seqlens), cluster(padded, token_mask=mask)
    merged = [sk.merge_tokens(*pair, backend=backend) for pair in ((packed, one), (padded, two))]
    assert torch.equal(*merged)
    spread = sk.unmerge_tokens(merged[0], one, backend=backend)
    assert torch.equal(spread, sk.unmerge_tokens(merged[1], two, backend=backend)[mask])


def test_there_are_no_masks_to_merge_by(cluster):
    x = testing.integer_tokens(1, 5, 4)
    out = cluster(x)
    with pytest.raises(ValueError, match=r"mode: expected 'hard' for \w+, which has no masks, got"):
        sk.merge_tokens(x, out, "soft")
    with pytest.raises(ValueError, match=r"mode: expected 'hard' for \w+, which has no masks, got"):
        sk.unmerge_tokens(x[:, : out.num_rows], out, "soft")


X = torch.zeros(2, 5, 3)
CU = torch.tensor([0, 2, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    "x, arguments, error, match",
    [
        ([[1.0]], {}, TypeError, r"x: expected a torch.Tensor, got list"),
        (X.long(), {}, TypeError, r"x: expected dtype float64, .* got torch.int64"),
        (X[0], {}, ValueError, r"x: expected shape \(B, N, D\), .* got \(5, 3\)"),
        (X[..., :0], {}, ValueError, r"x: expected at least 1 feature, got shape \(2, 5, 0\)"),
        (X, dict(token_mask=torch.ones(2, 5)), TypeError, r"token_mask: expected dtype torch.bool"),
        (X, dict(token_mask=torch.ones(2, 4, dtype=torch.bool)), ValueError,
         r"token_mask: expected shape \(2, 5\), got \(2, 4\)"),
        (X, dict(max_seqlen=5), ValueError, r"max_seqlen: expected None without cu_seqlens, got 5"),
        (X[0], dict(cu_seqlens=CU, token_mask=torch.ones(5, dtype=torch.bool)), ValueError,
         r"token_mask: expected None with cu_seqlens"),
        (X[0], dict(cu_seqlens=CU, max_seqlen=2), ValueError, r"max_seqlen: .*at least 3, got 2"),
        (X[0], dict(cu_seqlens=CU + 1), ValueError, r"cu_seqlens: .*from 0 to 5, got \[1, 3, 6\]"),
        (X, dict(backend="numpy"), ValueError, r"backend: expected one of auto, .*got 'numpy'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("operation", [sk.dpc_knn, sk.threshold_greedy])
def test_errors(operation, x, arguments, error, match):
    with pytest.raises(error, match=match):
        operation(x, threshold=0.5, **arguments)
