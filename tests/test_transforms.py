"""torch.func and forward-mode AD: the derivatives of autograd, or an error with the remedy."""

import dataclasses

import pytest
import torch
from torch.autograd import forward_ad

import setok_kernels as sk
from setok_kernels import testing

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")

CONFIG = sk.ClusterConfig(k=3, max_clusters=4, temperature=0.4, stop_residual=0.0)
CONFIGS = {
    "default": CONFIG,
    "dim": dataclasses.replace(CONFIG, distance_scale="dim", score_norm=None),
    "kernel": dataclasses.replace(CONFIG, alpha="kernel", kernel="laplacian"),
    "epanechnikov": dataclasses.replace(CONFIG, kernel="epanechnikov", bandwidth=2.0),
}
# What may be asked to be followed: "auto" takes the reference for it.
FOLLOWED = ["reference", "auto"]
COMPILED = [
    name for name, reason in sk.backends().items() if reason is None and name != "reference"
]
VALUES = ("masks", "density", "delta", "score")


def tokens(images=2):
    return testing.planted_clusters(images, 9, 3, 3, noise=0.3, dtype=torch.float64)[0]


def pipeline(backend, config=CONFIG, layout="padded"):
    """Everything differentiable, as one function of the tokens, beta and the weights."""

    def run(x, beta, weights):
        images = {}
        if layout == "packed":
            offsets = torch.tensor([0, 3, 9, 18], dtype=torch.int32)
            x, weights = x.flatten(0, 1), weights.flatten()
            images = dict(cu_seqlens=offsets, max_seqlen=9)
        mine = dataclasses.replace(config, beta=beta)
        out = sk.cluster_tokens(x, mine, **images, backend=backend)
        results = [getattr(out, name) for name in VALUES]
        for mode in ("soft", "hard"):
            merged = sk.merge_tokens(x, out, mode, weights, backend=backend)
            results += [merged, sk.unmerge_tokens(merged, out, mode, backend=backend)]
        return tuple(results)

    return run


def inputs():
    generator = torch.Generator().manual_seed(0)
    x = tokens()
    point = (
        x,
        torch.tensor(0.3, dtype=x.dtype),
        torch.rand(2, 9, generator=generator).double() + 0.1,
    )
    return point, tuple(torch.randn(p.shape, generator=generator).double() for p in point)


def pulled_back(run, point, along):
    """J v by autograd: the gradient, in the direction of v, of each result times fixed numbers."""
    leaves = [p.clone().requires_grad_() for p in point]
    products = []
    for result in run(*leaves):
        ones = torch.arange(result.numel()).reshape(result.shape).sin().to(result.dtype)
        loss = (result * ones).sum()
        grads = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        products.append(
            sum((g * v).sum() for g, v in zip(grads, along, strict=True) if g is not None)
        )
    return products


@pytest.mark.parametrize("backend", FOLLOWED)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("how", ["jvp", "dual"])
def test_forward_mode_is_the_transpose_of_reverse_mode(how, config, layout, backend):
    """Sigma and the decisions are constants in both."""
    run = pipeline(backend, CONFIGS[config], layout)
    point, along = inputs()
    if how == "jvp":
        values, tangents = torch.func.jvp(run, point, along)
    else:
        with forward_ad.dual_level():
            duals = run(*map(forward_ad.make_dual, point, along))
            values, tangents = zip(*map(forward_ad.unpack_dual, duals), strict=True)
    for value, plain in zip(values, run(*point), strict=True):
        torch.testing.assert_close(value, plain, rtol=1e-9, atol=1e-12)
    for tangent, expected in zip(tangents, pulled_back(run, point, along), strict=True):
        ones = torch.arange(tangent.numel()).reshape(tangent.shape).sin()
        assert tangent.abs().max() > 0
        torch.testing.assert_close((tangent * ones).sum(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", FOLLOWED)
def test_jacobians_gradients_and_batches(backend):
    x = tokens(1)
    config = CONFIGS["kernel"]

    def masks(x):
        return sk.cluster_tokens(x, config, backend=backend).masks

    def loss(x):
        out = sk.cluster_tokens(x, CONFIG, backend=backend)
        return sk.merge_tokens(x, out, "soft", backend=backend).square().sum()

    jacobian = torch.autograd.functional.jacobian(masks, x)
    close = dict(rtol=1e-8, atol=1e-10)
    for transform in (torch.func.jacfwd, torch.func.jacrev):
        torch.testing.assert_close(transform(masks)(x), jacobian, **close)
    batch = tokens(3)
    leaf = batch.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(batch), gradient, **close)
    each = torch.func.vmap(torch.func.grad(lambda t: loss(t[None])))(batch)
    torch.testing.assert_close(each, gradient, **close)
    for operation in (
        lambda t: sk.cluster_tokens(t[None], CONFIG, backend=backend).labels[0],
        lambda t: sk.dpc_knn(t[None], 3, backend=backend).labels[0],
        lambda t: sk.threshold_greedy(t[None], 0.5, backend=backend).labels[0],
    ):
        assert torch.equal(torch.func.vmap(operation)(batch), torch.stack([*map(operation, batch)]))


@pytest.mark.parametrize("backend", FOLLOWED)
def test_second_derivatives_forward_over_reverse(backend):
    x = tokens(1)[:, :5]

    def loss(x, backend):
        out = sk.cluster_tokens(x, CONFIG, backend=backend)
        return out.masks.square().sum()

    expected = torch.autograd.functional.hessian(lambda x: loss(x, "reference"), x)
    found = torch.func.hessian(lambda x: loss(x, backend))(x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert expected.abs().max() > 0


@pytest.mark.parametrize("backend", FOLLOWED)
def test_hard_clusterings_have_no_tangent(backend):
    x = tokens()
    for operation in (
        lambda x: sk.dpc_knn(x, 3, backend=backend).density,
        lambda x: sk.dpc_knn(x, 3, noise=x[..., 0], cap="eccentricity", backend=backend).delta,
    ):
        _, tangent = torch.func.jvp(operation, (x,), (torch.ones_like(x),))
        assert (tangent == 0).all()


@pytest.mark.parametrize("backend", COMPILED)
def test_a_named_backend_says_what_to_do(backend):
    """Never a zero where a derivative was asked for."""
    x = tokens().float()
    out = sk.cluster_tokens(x, CONFIG, backend=backend)
    merged = sk.merge_tokens(x, out, backend=backend)
    differentiated = {
        "cluster": (x, lambda x: sk.cluster_tokens(x, CONFIG, backend=backend).masks),
        "merge": (x, lambda x: sk.merge_tokens(x, out, backend=backend)),
        "unmerge": (merged, lambda t: sk.unmerge_tokens(t, out, backend=backend)),
    }
    for name, (point, run) in differentiated.items():
        remedy = rf"::{name}: .*use backend='reference'"
        with pytest.raises(RuntimeError, match=remedy):
            torch.func.jvp(run, (point,), (torch.ones_like(point),))
        with pytest.raises(RuntimeError, match=remedy):
            torch.func.jacfwd(run)(point)
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match=remedy):
            run(forward_ad.make_dual(point, torch.ones_like(point)))
        for transform in (torch.func.grad, torch.func.hessian):
            with pytest.raises(RuntimeError, match=remedy):
                transform(lambda t, run=run: run(t).square().sum())(point)
        # What is not followed is not refused, nor is the rest of such a function.
        with forward_ad.dual_level():
            assert torch.equal(run(point), run(point))
        expected = torch.func.grad(lambda t, run=run, p=point: (t * run(p).sum()).sum())(point)
        assert torch.allclose(expected, run(point).sum().expand_as(point))
        batched = torch.func.vmap(lambda scale, run=run, p=point: scale * run(p))(torch.ones(2))
        assert torch.equal(batched[0], run(point))
        # The gradient itself, in the direction of a tangent.
        leaf = point.clone().requires_grad_()
        result = run(leaf)
        with forward_ad.dual_level():
            grad = forward_ad.make_dual(torch.ones_like(result), torch.ones_like(result))
            with pytest.raises(RuntimeError, match=rf"::{name}_backward: forward-mode"):
                torch.autograd.grad(result, leaf, grad)
