"""The compiled backward passes against the reference's autograd, the same decisions replayed."""

import dataclasses

import pytest
import torch

import setok_kernels as sk
from helpers.clusterings import longest
from setok_kernels import reference, testing
from setok_kernels.compiled import mask_options
from setok_kernels.config import ALPHAS, KERNELS, LEARNABLE

pytestmark = pytest.mark.skipif(
    sk.backends()["cpp"] is not None, reason="the compiled module is not there"
)

VALUES = ("masks", "density", "delta", "score")
SOFT = sk.ClusterConfig(
    k=3, max_clusters=9, bandwidth=0.7, temperature=0.6, beta=0.3, offset=0.4, stop_residual=0.0
)


@dataclasses.dataclass
class Case:
    """One input, its forward results and gradients of those, some of which may be None."""

    x: torch.Tensor
    config: sk.ClusterConfig
    out: sk.Clusters
    grads: list
    valid: torch.Tensor | None = None

    def native(self, x=None):
        """Gradients of x and of the four hyper-parameters, from C++."""
        config, out = self.config, self.out
        grad_x, grad_importance, grad_learnable = torch.ops.setok.cluster_backward(
            self.x if x is None else x,
            self.valid,
            None,
            out.cu_seqlens,
            longest(out),
            *(getattr(out.decisions, n) for n in ("knn", "parent", "seeds", "counts")),
            *(getattr(out, n).contiguous() for n in VALUES),
            *self.grads,
            None,
            *mask_options(config, self.x),
        )
        assert grad_importance.shape == (0,)
        return grad_x, grad_learnable

    def plain(self, dtype=None):
        """The same from the reference, with x taken to `dtype`."""
        x = self.x.to(dtype or self.x.dtype).requires_grad_()
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        leaves = {n: torch.tensor(float(getattr(self.config, n)), dtype=wide) for n in LEARNABLE}
        for leaf in leaves.values():
            leaf.requires_grad_()
        config = dataclasses.replace(self.config, **leaves)
        images = (self.out.cu_seqlens, longest(self.out))
        out = reference.cluster(x, self.valid, *images, config, self.out.decisions)
        # The zero keeps what the values do not depend on in the graph.
        loss = sum(0 * leaf for leaf in (x.nan_to_num().sum(), *leaves.values()))
        for name, grad in zip(VALUES, self.grads, strict=True):
            if grad is not None:
                loss = loss + (getattr(out, name) * grad.to(wide)).sum()
        grads = torch.autograd.grad(loss, [x, *leaves.values()])
        return grads[0], torch.stack(grads[1:])


def make(x, config, seed=0, valid=None, cu_seqlens=None, decisions=None):
    out = sk.cluster_tokens(
        x, config, token_mask=valid, cu_seqlens=cu_seqlens, decisions=decisions, backend="cpp"
    )
    generator = torch.Generator().manual_seed(seed)
    values = [getattr(out, n) for n in VALUES]
    grads = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values]
    return Case(x, config, out, grads, valid)


def in_layout(layout, dtype, dim=5, seed=0):
    """x and the arguments of `make`, images of several sizes, a non-finite token in each layout."""
    packed, cu_seqlens, padded, mask = testing.ragged_batch([70, 0, 1, 33], dim, seed, dtype=dtype)
    padded[0, 3, 1] = packed[3, 1] = torch.nan
    if layout == "packed":
        return packed, dict(cu_seqlens=cu_seqlens)
    if layout == "masked":
        return padded, dict(valid=mask)
    return testing.planted_clusters(2, 70, dim, 4, seed, 0.3, dtype)[0], {}


def assert_exact(case):
    for name, got, expected in zip(("x", "options"), case.native(), case.plain(), strict=True):
        error = (got - expected).abs().max()
        assert error <= 1e-9 * expected.abs().max(), f"gradient of {name}: error {error:.3g}"


def assert_errs_like_plain(cases):
    """The largest error over the cases is at most twice that of the reference in the same dtype.

    That of one element, or of the four hyper-parameters of one case, would be a matter of luck.
    """
    for which, name in enumerate(("x", "options")):
        error = own = largest = 0
        for case in cases:
            got, truth = case.native()[which], case.plain(torch.float64)[which]
            assert got.isfinite().all(), name
            error = max(error, (got.double() - truth).abs().max())
            own = max(own, (case.plain()[which].double() - truth).abs().max())
            largest = max(largest, truth.abs().max())
            roundoff = torch.finfo(got.dtype).eps / 2
        allowed = 2 * own + 8 * roundoff * largest
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("scale", ["variance", "dim", 0.15])
@pytest.mark.parametrize("norm", ["max", None])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", ["padded", "masked", "packed"])
def test_float64(layout, kernel, alpha, norm, scale):
    config = dataclasses.replace(
        SOFT, kernel=kernel, alpha=alpha, score_norm=norm, distance_scale=scale
    )
    x, kwargs = in_layout(layout, torch.float64)
    assert_exact(make(x, config, **kwargs))


CONFIGS = {
    "default": sk.ClusterConfig(max_clusters=40),
    "include self": dataclasses.replace(SOFT, include_self=True),
    "paper": sk.ClusterConfig.paper(max_clusters=9),
    "many neighbours": dataclasses.replace(SOFT, k=200),
    "one cluster": dataclasses.replace(SOFT, max_clusters=1),
}


@pytest.mark.parametrize("tokens, dim", [(70, 5), (150, 130)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_float64_with_other_options_and_sizes(config, tokens, dim):
    x = testing.planted_clusters(1, tokens, dim, 6, 1, 0.3, torch.float64)[0]
    assert_exact(make(x, config))


def test_repeated_seeds():
    x = testing.planted_clusters(1, 70, 5, 6, 1, 0.3, torch.float64)[0]
    case = make(x, sk.ClusterConfig.paper(max_clusters=9))
    seeds = case.out.decisions.seeds[0]
    assert seeds.unique().numel() < seeds.numel()
    assert_exact(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_narrow_dtypes_err_like_plain_pytorch(kernel, alpha, dtype):
    cases = []
    for seed in range(6):
        config = dataclasses.replace(SOFT, kernel=kernel, alpha=alpha)
        x = testing.planted_clusters(1, *((70, 5), (150, 130))[seed % 2], 4, seed, 0.3, dtype)[0]
        cases.append(make(x, config, seed))
    # Gradients of inputs of different sizes are of different sizes too.
    assert_errs_like_plain(cases[::2])
    assert_errs_like_plain(cases[1::2])


@pytest.mark.parametrize("config", [sk.ClusterConfig(), CONFIGS["paper"]])
def test_correlated_features_err_like_plain_pytorch(config):
    config = dataclasses.replace(config, max_clusters=20)
    assert_errs_like_plain(
        [make(testing.vit_like_tokens(1, 150, 130, s), config) for s in range(4)]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e-7, 1e9])
def test_rounded_to_nearest_even(dtype, size):
    """Subnormal numbers and those out of range among them."""
    case = make(testing.planted_clusters(2, 70, 21, 4, 0, 0.3, dtype)[0], SOFT)
    case.grads = [size * g for g in case.grads]
    narrow, wide = case.native(), case.native(case.x.float())
    assert torch.equal(narrow[0], wide[0].to(dtype)) and torch.equal(narrow[1], wide[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck(kernel):
    config = dataclasses.replace(SOFT, kernel=kernel, max_clusters=4, distance_scale=0.15)
    x = testing.planted_clusters(1, 7, 3, 3, 2, 0.3, torch.float64)[0]
    decisions = make(x, config).out.decisions

    class Cluster(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *options):
            values = dict(zip(LEARNABLE, options, strict=True))
            ctx.case = make(x, dataclasses.replace(config, **values), decisions=decisions)
            return tuple(getattr(ctx.case.out, n) for n in VALUES)

        @staticmethod
        def backward(ctx, *grads):
            ctx.case.grads = [g.contiguous() for g in grads]
            grad_x, grad_options = ctx.case.native()
            return grad_x, *grad_options

    options = [torch.tensor(float(getattr(config, n)), dtype=torch.float64) for n in LEARNABLE]
    torch.autograd.gradcheck(Cluster.apply, [v.requires_grad_() for v in (x, *options)])


def test_absent_gradients_are_zero():
    x, kwargs = in_layout("masked", torch.float64)
    case = make(x, SOFT, **kwargs)
    grads = case.grads
    for which in range(4):
        case.grads = [g if i == which else None for i, g in enumerate(grads)]
        assert_exact(case)
    case.grads = [None] * 4
    assert all((g == 0).all() for g in case.native())


@pytest.mark.parametrize(
    "seeds, count",
    [([3, -1, 7, -1, -1], 4), ([3, 4, 5, 6, 7], 2), ([-1] * 5, 0), ([9, 9, 1, 2, 3], 0)],
)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_replayed_decisions_that_no_clustering_makes(seeds, count, alpha):
    x = testing.planted_clusters(1, 40, 6, 3, noise=0.3, dtype=torch.float64)[0]
    config = dataclasses.replace(SOFT, max_clusters=5, alpha=alpha)
    decisions = sk.cluster_tokens(x, config, backend="cpp").decisions
    decisions = dataclasses.replace(
        decisions, seeds=torch.tensor([seeds]), counts=torch.tensor([count])
    )
    assert_exact(make(x, config, decisions=decisions))


@pytest.mark.parametrize("scale", ["variance", "dim"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_tokens(kernel, scale):
    config = dataclasses.replace(SOFT, kernel=kernel, distance_scale=scale)
    for dim in (5, 130):
        case = make(torch.full((1, 150, dim), 0.5, dtype=torch.float64), config)
        got, expected = case.native(), case.plain()
        assert got[0].abs().max() <= 1e-12
        torch.testing.assert_close(got[1], expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_duplicates(kernel):
    x = testing.duplicate_tokens(1, 150, 24, distinct=9, dtype=torch.float64)
    assert_exact(make(x, dataclasses.replace(SOFT, kernel=kernel)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("power", [-100, 100])
def test_scaling_tokens_scales_gradients(kernel, power):
    config = dataclasses.replace(SOFT, kernel=kernel)
    x = testing.planted_clusters(1, 150, 21, 4, 0, 0.3)[0]
    case = make(x, config)
    scaled = case.native(x * 2.0**power)
    assert torch.equal(scaled[0] * 2.0**power, case.native()[0])
    assert torch.equal(scaled[1], case.native()[1])


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("scale", ["variance", "dim", 3.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_huge_and_tiny_magnitudes(kernel, scale, size):
    config = dataclasses.replace(SOFT, kernel=kernel, distance_scale=scale)
    x = testing.planted_clusters(1, 70, 5, 4, 0, 0.3)[0]
    x[0, 40:] = x[0, :30]
    case = make(x * size, config)
    got, truth = case.native(), case.plain(torch.float64)
    assert got[0].isfinite().all() and got[1].isfinite().all()
    if scale == "variance":
        torch.testing.assert_close(
            got[0].double(), truth[0], rtol=1e-4, atol=1e-5 * truth[0].abs().max().item()
        )
        torch.testing.assert_close(got[1].double(), truth[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype, power", [(torch.float64, -516), (torch.float32, -68)])
def test_a_subnormal_maximum_divides_nothing(dtype, power):
    """Its reciprocal would not be finite: scores are not normalised, nor are their gradients."""
    config = dataclasses.replace(SOFT, distance_scale=1.0, score_norm="max")
    x = testing.planted_clusters(1, 40, 5, 4, 0, 0.3, torch.float64)[0].to(dtype) * 2.0**power
    case = make(x, config)
    tiny = torch.finfo(dtype).tiny
    assert 0 < case.out.score.max() < tiny
    case.grads[:3] = [None] * 3
    got, expected = case.native(), case.plain()
    assert got[0].isfinite().all() and got[0].abs().max() > 0
    error, largest = (got[0] - expected[0]).abs().max(), expected[0].abs().max()
    # Subnormal factors have fewer digits.
    assert error <= 1e-4 * largest, (error, largest)
    raw = make(x, dataclasses.replace(config, score_norm=None), decisions=case.out.decisions)
    raw.grads = case.grads
    assert torch.equal(got[0], raw.native()[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_distances_that_are_cut_off_have_no_gradient(kernel):
    """A bandwidth beyond the cut leaves phi a slope there."""
    config = dataclasses.replace(SOFT, kernel=kernel, bandwidth=1e25, beta=0.0, distance_scale=1.0)
    x = testing.planted_clusters(1, 70, 5, 4, 0, 0.3)[0] * 1e12
    case = make(x, config)
    case.grads[1:] = [None] * 3
    assert (case.native()[0] == 0).all() and (case.plain()[0] == 0).all()


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(threads, images, dtype):
    x = testing.vit_like_tokens(images, 600, 130, dtype=dtype)
    valid = torch.arange(600).expand(images, -1) % 7 != 3
    for mask in (None, valid.contiguous()):
        case = make(x, sk.ClusterConfig(max_clusters=40), valid=mask)
        threads(1)
        expected = case.native()
        for count in (2, 4):
            threads(count)
            for got, want in zip(case.native(), expected, strict=True):
                assert torch.equal(got, want)


def merge_arguments(out, mode, dtype):
    """Masks, labels and counts, and where the images lie."""
    masks = out.masks.to(dtype).contiguous() if mode == "soft" else None
    return (masks, out.labels, out.counts), (out.cu_seqlens, longest(out))


def assert_close_to_plain(got, truth, plain):
    """Within 2x of the error of `plain`, all of them lists of tensors; float64 within 1e-9."""
    for g, t, p in zip(got, truth, plain, strict=True):
        error, own = (g - t).abs().max(), (p - t).abs().max()
        floor = 1e-9 if g.dtype == torch.float64 else 8 * torch.finfo(g.dtype).eps
        assert error <= 2 * own + floor * t.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dim", [5, 130])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("layout", ["padded", "masked", "packed"])
def test_merge_and_unmerge(layout, mode, weighted, dim, dtype):
    x, kwargs = in_layout(layout, dtype, dim)
    config = dataclasses.replace(SOFT, max_clusters=40)
    out = make(x, config, **kwargs).out
    generator = torch.Generator().manual_seed(0)
    weights = None
    if weighted:
        weights = torch.rand(x.shape[:-1], generator=generator, dtype=dtype)
        # A label of no mass is not divided.
        weights[out.labels == out.labels.flatten()[-1]] = 0
    tokens = torch.randn(out.counts.shape[0], 41, dim, generator=generator, dtype=dtype)
    grad = torch.randn(tokens.shape, generator=generator, dtype=dtype)
    spread_grad = torch.randn(x.shape, generator=generator, dtype=dtype)
    shares, images = merge_arguments(out, mode, dtype)

    def plain(dtype):
        leaves = [v.to(dtype).requires_grad_() for v in (x, tokens, out.masks)]
        w = weights.to(dtype).requires_grad_() if weighted else None
        given = dataclasses.replace(out, masks=leaves[2])
        wanted = [leaves[0], *leaves[2:] * (mode == "soft"), *[w] * weighted]
        merged = reference.merge(leaves[0], given, mode, w, 1e-6)
        first = torch.autograd.grad((merged * grad.to(dtype)).sum(), wanted)
        spread = reference.unmerge(leaves[1], given, mode)
        wanted = [leaves[1], *leaves[2:] * (mode == "soft")]
        return [*first, *torch.autograd.grad((spread * spread_grad.to(dtype)).sum(), wanted)]

    ops = torch.ops.setok
    merged = ops.merge_backward(grad, x, *shares, weights, *images, 1e-6, mode == "soft")
    spread = ops.unmerge_backward(spread_grad, tokens, *shares, *images, mode == "soft")
    got = [g for g in (*merged, *spread) if g.shape != (0,)]
    truth = plain(torch.float64)
    assert_close_to_plain(got, truth, plain(dtype))


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_merge_of_any_number_of_threads(mode, threads):
    packed, cu_seqlens, _, _ = testing.ragged_batch([600, 0, 1, 120], 130)
    out = make(packed, dataclasses.replace(SOFT, max_clusters=40), cu_seqlens=cu_seqlens).out
    shares, images = merge_arguments(out, mode, torch.float32)
    weights = torch.rand(packed.shape[0], generator=torch.Generator().manual_seed(0))
    tokens = torch.randn(4, 41, 130, generator=torch.Generator().manual_seed(0))

    def run(count):
        threads(count)
        ops = torch.ops.setok
        merged = ops.merge_backward(tokens, packed, *shares, weights, *images, 1e-6, True)
        return *merged, *ops.unmerge_backward(packed, tokens, *shares, *images, True)

    for count in (2, 4):
        for got, expected in zip(run(count), run(1), strict=True):
            assert torch.equal(got, expected)


def test_what_is_not_wanted_is_empty():
    x = testing.planted_clusters(1, 40, 6, 3)[0]
    out = make(x, SOFT).out
    grad, ops = torch.ones(1, 10, 6), torch.ops.setok
    shares, images = merge_arguments(out, "soft", torch.float32)
    hard = (None, *shares[1:])
    merged = ops.merge_backward(grad, x, *shares, None, *images, 1e-6, False)
    assert merged[1].shape == merged[2].shape == (0,)
    assert ops.unmerge_backward(x, grad, *shares, *images, False)[1].shape == (0,)
    # Without masks there is no gradient of theirs, wanted or not.
    assert ops.merge_backward(grad, x, *hard, None, *images, 1e-6, True)[1].shape == (0,)
    # The weights alone need what the masks would.
    weights = torch.ones(1, 40)
    alone = ops.merge_backward(grad, x, *shares, weights, *images, 1e-6, False)[2]
    both = ops.merge_backward(grad, x, *shares, weights, *images, 1e-6, True)[2]
    assert torch.equal(alone, both)
