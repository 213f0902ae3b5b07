"""The Triton backend in the interpreter: small shapes, several tiles, both regimes."""

import dataclasses
import os

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter; -m gpu has those for a GPU", allow_module_level=True)

import setok_kernels as sk
from helpers import interpreter
from helpers.clusterings import assert_bit_equal
from helpers.pairwise import pairwise
from setok_kernels import testing
from setok_triton import configs

interpreter.repair()
# NumPy warns of what the kernels mask away.
pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

CONFIGS = {
    "default": sk.ClusterConfig(max_clusters=6),
    "paper": sk.ClusterConfig.paper(max_clusters=5),
    "kernel": sk.ClusterConfig(
        max_clusters=5, k=3, kernel="laplacian", alpha="kernel", include_self=True
    ),
    "mass": sk.ClusterConfig(
        max_clusters=5, k=20, kernel="epanechnikov", min_mass=0.5, distance_scale=2.0
    ),
}
REGIMES = ["dense", "streaming"]
OPS = torch.ops.setok_interpreted
# Every precision of a float32 product is exact in the interpreter.
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def cluster(x, config, **kwargs):
    return sk.cluster_tokens(x, config, backend="triton", **kwargs)


@pytest.mark.parametrize(
    "regime, name, kind",
    pairwise(regime=REGIMES, name=CONFIGS, kind=["integers", "duplicates", "one hot", "equal"]),
    indirect=["regime"],
)
def test_exact_tokens(regime, name, kind):
    """Two tiles of rows and columns, ragged at the end: the reference's decisions, bit for bit."""
    x = {
        "integers": lambda: testing.integer_tokens(2, 70, 5),
        "duplicates": lambda: testing.duplicate_tokens(2, 35, 9, distinct=12),
        "one hot": lambda: testing.one_hot_tokens(2, 35, 12),
        "equal": lambda: torch.full((2, 20, 3), 0.1),
    }[kind]()
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(0)) > 0.2
    mask[0] = True
    testing.check_backend("triton", x, CONFIGS[name], token_mask=mask, exact=True)


@pytest.mark.parametrize(
    "regime, dtype, shape",
    pairwise(regime=REGIMES, dtype=DTYPES, shape=[(1, 37, 130), (1, 140, 17), (4, 5, 64)]),
    ids=str,
    indirect=["regime"],
)
def test_real_tokens(regime, dtype, shape):
    x = testing.vit_like_tokens(*shape).to(dtype)
    out = testing.check_backend("triton", x, CONFIGS["default"])
    assert_bit_equal(cluster(x, CONFIGS["default"], decisions=out.decisions), out)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_precisions_of_float32(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        x = testing.vit_like_tokens(1, 70, 33)
        testing.check_backend("triton", x, CONFIGS["default"])
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", CONFIGS)
def test_ragged_batches(regime, name):
    config = CONFIGS[name]
    packed, cu_seqlens, padded, mask = testing.ragged_batch([3, 0, 1, 35], 9, exact=True)
    out = testing.check_backend("triton", packed, config, cu_seqlens=cu_seqlens, exact=True)
    same = cluster(padded, config, token_mask=mask)
    assert torch.equal(same.decisions.seeds, out.decisions.seeds)
    for name in ("labels", "density", "delta", "score"):
        assert torch.equal(getattr(same, name)[mask], getattr(out, name)), name
    assert torch.equal(same.masks.movedim(1, 0)[:, mask], out.masks)


def test_offsets_of_64_bits():
    packed, cu_seqlens, _, _ = testing.ragged_batch([3, 0, 9], 5)
    out = cluster(packed, CONFIGS["default"], cu_seqlens=cu_seqlens)
    assert_bit_equal(cluster(packed, CONFIGS["default"], cu_seqlens=cu_seqlens.long()), out)


def test_a_chunk_is_a_part_of_the_batch(monkeypatch):
    """As many images as share the memory go together; the last chunk is smaller."""
    x = testing.vit_like_tokens(5, 12, 8)
    config = sk.ClusterConfig(max_clusters=4, k=3)
    out = cluster(x, config)
    monkeypatch.setattr(configs, "DENSE_BYTES", 2 * 4 * 12 * 12)
    assert configs.dense_images(5, 12, 12) == 2
    assert_bit_equal(cluster(x, config), out)
    packed, cu_seqlens = x.flatten(0, 1), torch.arange(6) * 12
    assert torch.equal(cluster(packed, config, cu_seqlens=cu_seqlens).labels, out.labels.flatten())


def test_non_finite_tokens(regime):
    x = testing.integer_tokens(2, 30, 5)
    x[0, 3, 1], x[0, 0, 0], x[1, :] = torch.nan, torch.inf, torch.nan
    testing.check_backend("triton", x, CONFIGS["default"], exact=True)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-5, 1e10, 1e37])
def test_magnitudes(scale):
    x = testing.integer_tokens(2, 30, 5) * scale
    testing.check_backend("triton", x, CONFIGS["default"])


def operation_arguments(tokens, limit):
    """Of `setok::cluster`, behind x: k = 2 and 3 clusters."""
    numbers = (None, 0, 0, 0.5, 0.1, 0.1, 0.5, 0, 0.0, True, 2, 3, True, False, False, 0.0, 0.0)
    return (*[None] * 4, tokens, *[None] * 4, *numbers, limit)


@pytest.mark.parametrize("view", ["features first", "steps", "expanded"])
def test_strides(view):
    """The operation itself: the public function makes its input contiguous."""
    x = testing.integer_tokens(3, 30, 12)
    x = {
        "features first": lambda: x.transpose(1, 2),
        "steps": lambda: x[:, ::2, ::3],
        "expanded": lambda: x[:1].expand(3, -1, -1),
    }[view]()
    assert not x.is_contiguous()
    arguments = operation_arguments(x.shape[1], 2048)
    found, expected = (OPS.cluster(t, *arguments) for t in (x, x.contiguous()))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_replayed_decisions_that_no_clustering_makes(regime):
    """Absent seeds in the middle, seeds behind the residual: as the reference has it."""
    x = testing.planted_clusters(1, 40, 6, 3, noise=0.3)[0]
    config = sk.ClusterConfig(max_clusters=5)
    d = cluster(x, config).decisions
    for seeds, count in (([3, -1, 7, -1, -1], 4), ([3, 4, 5, 6, 7], 2), ([-1] * 5, 0)):
        forced = dataclasses.replace(
            d,
            seeds=torch.tensor([seeds]),
            counts=torch.tensor([count]),
            parent=torch.full_like(d.parent, -1),
        )
        out = cluster(x, config, decisions=forced)
        expected = sk.cluster_tokens(x, config, decisions=forced, backend="reference")
        for name in ("masks", "density", "delta", "score"):
            torch.testing.assert_close(getattr(out, name), getattr(expected, name))
        assert torch.equal(out.masks.argmax(1), out.labels)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_merging_passes_opcheck(mode):
    """Fakes, schemas and autograd formulas are shared with C++; these kernels must fit them too."""
    x = testing.vit_like_tokens(2, 12, 6).requires_grad_()
    config = sk.ClusterConfig(max_clusters=3, k=2, stop_residual=0.0)
    out = sk.cluster_tokens(x.detach(), config, backend="reference")
    share = out.masks if mode == "soft" else None
    images = (out.labels, out.counts)
    merge = (x, share, *images, torch.rand(2, 12), None, 12, 4, 1e-6)
    torch.library.opcheck(OPS.merge.default, merge)
    tokens = torch.rand(2, 4, 6).requires_grad_()
    torch.library.opcheck(OPS.unmerge.default, (tokens, share, *images, None, 12))


def test_clustering_passes_opcheck():
    x = testing.vit_like_tokens(2, 12, 6).requires_grad_()
    torch.library.opcheck(OPS.cluster.default, (x, *operation_arguments(12, 2048)))


def test_gradients_follow_the_decisions_of_the_forward():
    x = testing.vit_like_tokens(1, 30, 8).requires_grad_()
    beta = torch.tensor(0.1, requires_grad=True)
    config = sk.ClusterConfig(max_clusters=4, beta=beta)
    out = cluster(x, config)
    with torch.no_grad():
        plain = cluster(x, config)
    assert torch.equal(out.decisions.seeds, plain.decisions.seeds)
    out.masks.square().sum().backward()
    assert (x.grad != 0).any() and beta.grad != 0


@pytest.mark.parametrize(
    "case, dtype, weighted",
    pairwise(
        # Hard, each cluster is a program: no tile of them to cross.
        case=[("soft", 1, 3), ("soft", 150, 70), ("hard", 1, 3), ("hard", 150, 9)],
        dtype=DTYPES,
        weighted=[False, True],
    ),
    ids=str,
)
def test_merging(case, dtype, weighted):
    """Several tiles of tokens, features and rows, ragged at every end; a NaN in one token."""
    mode, dim, clusters = case
    packed, cu_seqlens, padded, mask = testing.ragged_batch([70, 0, 1, 40], dim)
    packed, padded = packed.to(dtype), padded.to(dtype)
    padded[0, 7] = packed[7] = torch.nan
    config = sk.ClusterConfig(max_clusters=clusters, stop_residual=0.0)
    generator = torch.Generator().manual_seed(0)
    for x, kwargs in ((packed, {"cu_seqlens": cu_seqlens}), (padded, {"token_mask": mask})):
        out = sk.cluster_tokens(x, config, backend="reference", **kwargs)
        weights = 5 * torch.rand(x.shape[:-1], generator=generator) if weighted else None
        merged = sk.merge_tokens(x, out, mode, weights, backend="triton")
        expected = sk.merge_tokens(x, out, mode, weights, backend="reference")
        # The interpreter cuts float32 off to bfloat16 instead of rounding it.
        close = dict(rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
        torch.testing.assert_close(merged, expected, **close)
        spread = sk.unmerge_tokens(expected, out, mode, backend="triton")
        again = sk.unmerge_tokens(expected, out, mode, backend="reference")
        torch.testing.assert_close(spread, again, **close)


def test_merging_integers_is_exact():
    x = testing.integer_tokens(2, 30, 5)
    out = cluster(x, CONFIGS["default"])
    merged = sk.merge_tokens(x, out, backend="triton")
    assert torch.equal(merged, sk.merge_tokens(x, out, backend="reference"))
    assert torch.equal(
        sk.unmerge_tokens(merged, out, backend="triton"), sk.unmerge_tokens(merged, out)
    )


def test_merging_other_strides():
    x = testing.integer_tokens(2, 30, 12)
    out = cluster(x, CONFIGS["default"])
    for mode in ("soft", "hard"):
        expected = sk.merge_tokens(x[:, :, ::3].contiguous(), out, mode, backend="triton")
        got = sk.merge_tokens(x[:, :, ::3], out, mode, backend="triton")
        assert torch.equal(got, expected)


@pytest.mark.parametrize("limit", [0, 2048])
def test_offsets_beyond_31_bits(limit):
    """The operations themselves: the public functions make their input contiguous."""
    plain = testing.integer_tokens(1, 20, 5).bfloat16()
    x = interpreter.far_apart(plain)
    arguments = operation_arguments(20, limit)
    found, expected = (OPS.cluster(t, *arguments) for t in (x, plain))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    masks, labels, counts = found[0], found[1], found[-2]
    for share in (masks, None):
        rest = (share, labels, counts, None, None, 20, 4, 1e-6)
        assert torch.equal(OPS.merge(x, *rest), OPS.merge(plain, *rest))


def test_float64_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"expected float32, bfloat16 or float16.*reference"):
        cluster(torch.zeros(1, 4, 2, dtype=torch.float64), CONFIGS["default"])
    out = cluster(torch.zeros(1, 4, 2), CONFIGS["default"])
    with pytest.raises(RuntimeError, match=r"expected float32, bfloat16 or float16.*reference"):
        sk.merge_tokens(torch.zeros(1, 4, 2, dtype=torch.float64), out, backend="triton")


@pytest.mark.parametrize("tokens, images", [(1, 64), (729, 64), (2048, 32), (2049, 0)])
def test_chunks_fit_their_memory(tokens, images):
    assert configs.dense_images(64, tokens, 2048) == images
    assert images <= 1 or 4 * images * tokens**2 <= configs.DENSE_BYTES


def test_configurations():
    """A step fills 128 bytes; programs over all tokens share code up to a power of two."""
    assert configs.tile_config(torch.bfloat16).block_d * 2 == 128
    assert configs.row_config(513) == configs.row_config(1024)
    assert configs.row_config(1025).block_n == 2048
