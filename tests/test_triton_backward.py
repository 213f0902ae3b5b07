"""The backward passes of the Triton backend in the interpreter, against autograd in float64."""

import dataclasses
import os
import random

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter", allow_module_level=True)

import setok_kernels as sk
from helpers import interpreter
from helpers.clusterings import longest
from helpers.pairwise import pairwise
from setok_kernels import testing
from setok_kernels.compiled import mask_options
from setok_kernels.config import LEARNABLE

interpreter.repair()
# NumPy warns of what the kernels mask away.
pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

OPS = torch.ops.setok_interpreted
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VALUES = ("masks", "density", "delta", "score")
# Roundings of the largest gradient: below this the error is a matter of luck.
FLOOR = 16


def triton_gradients(x, config, out, grads, token_mask=None, saved=None):
    """Gradients of x and of the learnable options by the operation, in the interpreter."""
    d = out.decisions
    wide = [None if g is None else g.contiguous() for g in grads]
    grad_x, grad_importance, grad_learnable = OPS.cluster_backward(
        x,
        token_mask,
        None,
        out.cu_seqlens,
        longest(out),
        *(t.contiguous() for t in (d.knn, d.parent, d.seeds, d.counts)),
        *(getattr(out, name).contiguous() for name in VALUES),
        *wide,
        saved,
        *mask_options(config, x),
    )
    assert grad_importance.shape == (0,)
    return grad_x, grad_learnable


def random_like(tensor, seed):
    """Normal float32 numbers."""
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))


def planted(images, tokens, dim, seed):
    """Blobs that overlap."""
    return testing.planted_clusters(images, tokens, dim, 4, seed, noise=0.4)[0]


def assert_close(name, got, truth, plain):
    """|got - truth| is at most twice that of plain float32 autograd, by the largest element."""
    assert got.shape == truth.shape and got.dtype == plain.dtype, name
    if got.numel() == 0:
        return
    error = (got.double() - truth).abs().max()
    own = (plain.double() - truth).abs().max()
    roundoff = torch.finfo(got.dtype).eps / 2
    allowed = 2 * own + FLOOR * roundoff * truth.abs().max()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} (plain {own:.3g})"


def autograd(x, config, out, grads, dtype, **layout):
    """Gradients of x and of the learnable options by the reference, in `dtype`."""
    x = x.detach().requires_grad_()
    leaves = [
        torch.tensor(float(getattr(config, n)), dtype=dtype, requires_grad=True) for n in LEARNABLE
    ]
    tuned = dataclasses.replace(config, **dict(zip(LEARNABLE, leaves, strict=True)))
    again = sk.cluster_tokens(x, tuned, decisions=out.decisions, backend="reference", **layout)
    loss = sum(
        (getattr(again, name) * grad.to(dtype)).sum()
        for name, grad in zip(VALUES, grads, strict=True)
        if grad is not None
    )
    found = torch.autograd.grad(loss, [x, *leaves], allow_unused=True)
    found = [
        torch.zeros_like(i) if g is None else g for i, g in zip([x, *leaves], found, strict=True)
    ]
    return found[0], torch.stack(found[1:])


def check(x, config, wanted=VALUES, out=None, **layout):
    """One backward pass against autograd; returns what the backend gave."""
    if out is None:
        out = sk.cluster_tokens(x, config, backend="reference", **layout)
    grads = [
        random_like(getattr(out, name), i) if name in wanted else None
        for i, name in enumerate(VALUES)
    ]
    got = triton_gradients(x, config, out, grads, layout.get("token_mask"))
    truth = autograd(x.double(), config, out, grads, torch.float64, **layout)
    plain = autograd(x, config, out, grads, torch.float32, **layout)
    assert_close("x", got[0], truth[0], plain[0])
    # The error of four sums is luck: it differs thirty times by the order of the features. So both
    # sides are judged in the same orders.
    sums, plain_sums = [got[1]], [plain[1]]
    for order in (torch.arange(x.shape[-1]).roll(shift) for shift in (1, 2)):
        moved = x[..., order]
        sums += triton_gradients(moved, config, out, grads, layout.get("token_mask"))[1:]
        plain_sums += autograd(moved, config, out, grads, torch.float32, **layout)[1:]
    same = truth[1].expand(len(sums), -1)
    assert_close("learnable", torch.stack(sums), same, torch.stack(plain_sums))
    return got


@pytest.mark.parametrize(
    "kernel, alpha, norm",
    pairwise(
        kernel=["gaussian", "laplacian", "epanechnikov"],
        alpha=["sigmoid", "kernel"],
        norm=["max", None],
    ),
)
def test_curves(kernel, alpha, norm):
    x = testing.planted_clusters(1, 70, 37, 4, noise=0.4)[0]
    config = sk.ClusterConfig(
        max_clusters=5, kernel=kernel, alpha=alpha, score_norm=norm, bandwidth=0.9, temperature=0.3
    )
    grad_x, grad_learnable = check(x, config)
    assert (grad_x != 0).all(2).any() and (grad_learnable[:2] != 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", ["variance", "dim", 0.15])
def test_scales(dtype, scale):
    """Features that share an offset, and their neighbours among themselves."""
    x = testing.vit_like_tokens(1, 40, 37).to(dtype)
    check(x, sk.ClusterConfig(max_clusters=5, distance_scale=scale, include_self=True, k=3))


@pytest.mark.parametrize("seed", range(20))
def test_options_together(seed):
    """Draws of all options at once, which the other tests vary one or two at a time."""
    draw = random.Random(seed)
    make = draw.choice([planted, testing.integer_tokens, testing.duplicate_tokens])
    x = make(1, draw.randint(20, 40), draw.choice([3, 12, 37]), seed).to(draw.choice(DTYPES))
    config = sk.ClusterConfig(
        max_clusters=draw.randint(3, 12),
        k=draw.randint(1, 6),
        kernel=draw.choice(["gaussian", "laplacian", "epanechnikov"]),
        alpha=draw.choice(["sigmoid", "kernel"]),
        score_norm=draw.choice(["max", None]),
        distance_scale=draw.choice(["variance", "dim", 0.1]),
        include_self=draw.random() < 0.5,
        distinct_seeds=draw.random() < 0.5,
        stop_residual=0.0,
    )
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(seed)) > 0.2
    check(x, config, **draw.choice([{}, {"token_mask": mask}]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_common_offset_cancels(dtype):
    """What a seed pulls at its tokens is what they pull at the seed, to the bits of float32."""
    x = testing.planted_clusters(1, 40, 12, 3, noise=0.4)[0]
    x[..., 5] = 200
    x = x.to(dtype)
    config = sk.ClusterConfig(max_clusters=6, k=3)
    out = sk.cluster_tokens(x, config, backend="reference")
    grads = [random_like(out.masks, 0), None, None, None]
    grad_x, _ = triton_gradients(x, config, out, grads)
    others = grad_x[..., torch.arange(12) != 5].float()
    assert grad_x[..., 5].float().abs().max() <= 2e-4 * others.abs().max()


@pytest.mark.parametrize("name", ["default", "paper"])
def test_layouts(name):
    """An empty image, one of one token, a NaN; padded, masked and packed agree with autograd."""
    preset = {"default": sk.ClusterConfig, "paper": sk.ClusterConfig.paper}[name]
    config = preset(max_clusters=5, k=4)
    packed, cu_seqlens, padded, mask = testing.ragged_batch([30, 0, 1, 20], 12)
    padded[0, 7] = packed[7] = torch.nan
    flat, _ = check(packed, config, cu_seqlens=cu_seqlens)
    assert (flat[7] == 0).all() and flat.isfinite().all()
    masked, _ = check(padded, config, token_mask=mask)
    assert (masked[~mask] == 0).all()
    check(padded[:1], config)


def test_several_tiles_of_everything():
    """Seeds, tokens and features beyond one tile; a token may be the seed of many clusters."""
    x = testing.vit_like_tokens(1, 150, 130)
    config = sk.ClusterConfig(max_clusters=70, stop_residual=0.0, k=17)
    out = sk.cluster_tokens(x, config, backend="reference")
    assert (out.decisions.seeds >= 0).all()
    check(x, config, out=out)


@pytest.mark.parametrize(
    "dtype, scale",
    [(d, s) for d in DTYPES for s in (1e-5, 1e4, 1e30, 1e37) if d != torch.float16 or s <= 1e4],
    ids=str,
)
def test_magnitudes(dtype, scale):
    """The scale is applied where the features are read: nothing leaves the range on the way."""
    x = (testing.planted_clusters(1, 12, 5, 3, noise=0.4)[0] * scale).to(dtype)
    config = sk.ClusterConfig(max_clusters=4, k=3)
    if scale < 1e20:
        check(x, config)
        return
    out = sk.cluster_tokens(x, config, backend="reference")
    grads = [random_like(getattr(out, name), i) for i, name in enumerate(VALUES)]
    # Gradients of tokens this large are subnormal; a gradient this much larger is not.
    grads = [grad * 1e30 for grad in grads]
    got, _ = triton_gradients(x, config, out, grads)
    truth, _ = autograd(x.double(), config, out, grads, torch.float64)
    error = (got.double() - truth).abs().max()
    assert error <= max(4 * torch.finfo(dtype).eps, 1e-4) * truth.abs().max()


@pytest.mark.parametrize("wanted", [(), *((name,) for name in VALUES), VALUES[1:]], ids=str)
def test_absent_gradients(wanted):
    x = testing.planted_clusters(1, 20, 5, 3, noise=0.4)[0]
    config = sk.ClusterConfig(max_clusters=4, k=3)
    if wanted:
        grad_x, _ = check(x, config, wanted)
        assert (grad_x != 0).any()
        return
    out = sk.cluster_tokens(x, config, backend="reference")
    for grad in triton_gradients(x, config, out, [None] * 4):
        assert (grad == 0).all()


@pytest.mark.parametrize("alpha", ["sigmoid", "kernel"])
@pytest.mark.parametrize(
    "seeds, count",
    [
        ([3, -1, 7, -1, -1], 4),
        ([3, 4, 5, 6, 7], 2),
        ([3, 4, 5, 6, 7], 0),
        ([3, 3, 3, 9, 3], 5),
        ([-1] * 5, 0),
        ([-1, 2, -1, 4, 2], 5),
    ],
    ids=str,
)
def test_replayed_decisions_that_no_clustering_makes(alpha, seeds, count):
    """Absent and repeated seeds, seeds behind the residual or in its row, tokens without parent."""
    x = testing.planted_clusters(1, 20, 6, 3, noise=0.3)[0]
    config = sk.ClusterConfig(max_clusters=5, k=3, alpha=alpha, temperature=0.4)
    d = sk.cluster_tokens(x, config, backend="reference").decisions
    forced = dataclasses.replace(
        d,
        seeds=torch.tensor([seeds]),
        counts=torch.tensor([count]),
        parent=torch.full_like(d.parent, -1),
    )
    out = sk.cluster_tokens(x, config, decisions=forced, backend="reference")
    check(x, config, out=out)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
def test_equal_tokens(kernel):
    """No variance, no gradient of the features; that of the options stays."""
    x = torch.full((1, 20, 3), 0.1)
    grad_x, grad_learnable = check(x, sk.ClusterConfig(max_clusters=4, kernel=kernel))
    assert (grad_x == 0).all() and (grad_learnable[2:] != 0).all()
    x = testing.duplicate_tokens(1, 20, 3, distinct=4)
    check(x, sk.ClusterConfig(max_clusters=4, kernel=kernel))


@pytest.mark.parametrize("temperature", [4e-3, 5e-4, 1e-4])
def test_vanishing_alpha(temperature):
    """Levels around and far beyond what the exponential can hold."""
    x = testing.planted_clusters(1, 20, 3, 3)[0]
    found = check(x, sk.ClusterConfig(max_clusters=4, temperature=temperature))
    assert all(grad.isfinite().all() for grad in found)


@pytest.mark.parametrize("view", ["features first", "steps", "expanded"])
def test_strides(view):
    x = testing.vit_like_tokens(2, 20, 12)
    x = {
        "features first": lambda: x.transpose(1, 2),
        "steps": lambda: x[:, ::2, ::3],
        "expanded": lambda: x[:1].expand(2, -1, -1),
    }[view]()
    config = sk.ClusterConfig(max_clusters=4, k=3)
    out = sk.cluster_tokens(x, config, backend="reference")
    # As a sum gives them: one number for all.
    grads = [torch.ones(()).expand_as(getattr(out, name)) for name in VALUES]
    got, again = (triton_gradients(t, config, out, grads) for t in (x, x.contiguous()))
    assert torch.equal(got[0], again[0]) and torch.equal(got[1], again[1])


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (1, 1, 1)], ids=str)
def test_few_tokens_or_none(shape):
    grad_x, grad_learnable = check(torch.zeros(shape), sk.ClusterConfig(max_clusters=4))
    assert (grad_x == 0).all() and grad_learnable.isfinite().all()


def test_runs_repeat_bit_for_bit():
    """And poisoned memory changes nothing: `empty` is full of NaN in the tests."""
    x = testing.planted_clusters(1, 12, 12, 3, noise=0.4)[0]
    config = sk.ClusterConfig(max_clusters=4, k=3)
    out = sk.cluster_tokens(x, config, backend="reference")
    grads = [random_like(getattr(out, name), i) for i, name in enumerate(VALUES)]
    runs = [triton_gradients(x, config, out, grads) for _ in range(10)]
    first = runs[0]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_neighbour_of_all(dtype):
    """A token in the middle of a star, whose tip has more entries than any class of tokens."""
    x = torch.cat([torch.zeros(1, 64), 3 * torch.eye(64)[:50]]).roll(7, 0)[None].to(dtype)
    config = sk.ClusterConfig(max_clusters=4, k=1, distance_scale=0.1)
    out = sk.cluster_tokens(x, config, backend="reference")
    assert (out.decisions.knn[0, :, 0] == 7).sum() == 50
    check(x, config, wanted=("density",), out=out)
    check(x, config, out=out)


def test_float64_says_what_to_do():
    x = torch.zeros(1, 4, 2)
    out = sk.cluster_tokens(x, backend="reference")
    with pytest.raises(RuntimeError, match=r"expected float32, bfloat16 or float16.*reference"):
        triton_gradients(x.double(), sk.ClusterConfig(), out, [None] * 4)


def merge_by_autograd(x, out, mode, weights, grad, dtype):
    """Gradients of x, masks and weights of the reference's merge."""
    inputs = [x, out.masks.to(dtype)] + ([] if weights is None else [weights.to(dtype)])
    inputs = [t.detach().requires_grad_() for t in inputs]
    given = dataclasses.replace(out, masks=inputs[1])
    merged = sk.merge_tokens(
        inputs[0], given, mode, None if weights is None else inputs[2], backend="reference"
    )
    return torch.autograd.grad(merged, inputs, grad.to(merged.dtype), allow_unused=True)


def unmerge_by_autograd(tokens, out, mode, grad, dtype):
    """Gradients of tokens and masks of the reference's unmerge."""
    inputs = [t.detach().requires_grad_() for t in (tokens, out.masks.to(dtype))]
    given = dataclasses.replace(out, masks=inputs[1])
    spread = sk.unmerge_tokens(inputs[0], given, mode, backend="reference")
    return torch.autograd.grad(spread, inputs, grad.to(spread.dtype), allow_unused=True)


def in_use(grad_masks, out):
    """With 0 where the masks are constants: behind the residual, and of masked tokens."""
    row = torch.arange(out.num_rows)
    counts = out.counts[:, None]
    if out.cu_seqlens is not None:
        counts = out.counts.repeat_interleave(out.cu_seqlens.diff().long())[:, None]
        keep = (row <= counts).T
    else:
        keep = (row <= counts)[:, :, None] & (out.labels >= 0)[:, None]
    return torch.where(keep, grad_masks, 0)


def masses(out, weights, eps):
    """What divides each share of a soft merge, in the layout of the masks."""
    share = out.masks if weights is None else out.masks * weights.unsqueeze(-2)
    share = torch.where(out.labels.unsqueeze(-2) >= 0, share, 0).double()
    if out.cu_seqlens is None:
        return share.sum(2, keepdim=True) + eps
    lengths = out.cu_seqlens.diff().tolist()
    parts = [part.sum(1, keepdim=True).expand_as(part) for part in share.split(lengths, 1)]
    return torch.cat(parts, 1) + eps


@pytest.fixture(scope="module")
def layouts():
    """Several tiles of tokens and features, ragged; a NaN in one token; packed and padded."""
    packed, cu_seqlens, padded, mask = testing.ragged_batch([70, 0, 1, 40], 37)
    padded[0, 7] = packed[7] = torch.nan
    config = sk.ClusterConfig(max_clusters=20, stop_residual=0.0, k=4)
    found = []
    for x, kwargs in ((packed, {"cu_seqlens": cu_seqlens}), (padded, {"token_mask": mask})):
        found.append((x, sk.cluster_tokens(x, config, backend="reference", **kwargs)))
    return found


@pytest.mark.parametrize(
    "mode, dtype, weighted",
    pairwise(mode=["soft", "hard"], dtype=DTYPES, weighted=[False, True]),
    ids=str,
)
def test_merging(layouts, mode, dtype, weighted):
    for x, out in layouts:
        x = x.to(dtype)
        weights = 5 * random_like(out.labels, 0).abs() if weighted else None
        grad = random_like(torch.empty(4, 21, 37), 1).to(dtype)
        masks = out.masks if mode == "soft" else None
        shares, images = (masks, out.labels, out.counts), (out.cu_seqlens, longest(out))
        got = OPS.merge_backward(grad, x, *shares, weights, *images, 1e-6, mode == "soft")
        truth = merge_by_autograd(x.double(), out, mode, weights, grad, torch.float64)
        plain = merge_by_autograd(x, out, mode, weights, grad, torch.float32)
        assert_close("x", got[0], truth[0], plain[0])
        assert (got[1].shape == (0,)) == (mode == "hard")
        assert (got[2].shape == (0,)) == (weights is None)
        if mode == "soft":
            # Rows of little mass would hide the errors of the others.
            mass = masses(out, weights, 1e-6)
            values = [in_use(g, out) * mass for g in (got[1], truth[1], plain[1])]
            assert_close("masks", *values)
        if weighted:
            assert_close("weights", got[2], truth[2], plain[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_unmerging(layouts, mode, dtype):
    for x, out in layouts:
        tokens = random_like(torch.empty(4, 21, 37), 1).to(dtype)
        grad = random_like(x, 2).to(dtype)
        masks = out.masks if mode == "soft" else None
        shares, images = (masks, out.labels, out.counts), (out.cu_seqlens, longest(out))
        got = OPS.unmerge_backward(grad, tokens, *shares, *images, mode == "soft")
        truth = unmerge_by_autograd(tokens.double(), out, mode, grad, torch.float64)
        plain = unmerge_by_autograd(tokens, out, mode, grad, torch.float32)
        assert_close("tokens", got[0], truth[0], plain[0])
        assert (got[1].shape == (0,)) == (mode == "hard")
        if mode == "soft":
            assert_close("masks", got[1], in_use(truth[1], out), in_use(plain[1], out))


@pytest.mark.parametrize(
    "kernel, scale, dtype",
    [
        ("gaussian", "variance", torch.float32),
        ("laplacian", "dim", torch.bfloat16),
        ("epanechnikov", "variance", torch.float16),
    ],
    ids=str,
)
def test_forward_and_backward_together(kernel, scale, dtype):
    """Values and gradients of one backend, as users call it; tokens with a large common part."""
    config = sk.ClusterConfig(max_clusters=5, k=3, kernel=kernel, distance_scale=scale)
    x = testing.vit_like_tokens(1, 40, 16).to(dtype)
    testing.assert_replayed_gradients(x, config, "triton")
