"""Gradients with the decisions held fixed (DESIGN: gradients)."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import setok_kernels as sk
from helpers.strategies import configs, real_tokens
from setok_kernels import testing
from setok_kernels.config import LEARNABLE

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")

KERNELS = ["gaussian", "laplacian", "epanechnikov"]


def replayed(config, decisions, **arguments):
    """Function of x and the four hyper-parameters with everything discrete held fixed."""

    def function(x, *learnable):
        tuned = dataclasses.replace(config, **dict(zip(LEARNABLE, learnable, strict=True)))
        out = sk.cluster_tokens(x, tuned, decisions=decisions, **arguments)
        return out.masks, out.density, out.delta, out.score

    return function


def leaves(config, x):
    values = [torch.tensor(float(getattr(config, n)), dtype=torch.float64) for n in LEARNABLE]
    return [v.requires_grad_() for v in (x, *values)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("alpha", ["sigmoid", "kernel"])
@pytest.mark.parametrize("norm", ["max", None])
@pytest.mark.parametrize("layout", ["padded", "masked", "packed"])
def test_gradcheck(backend, kernel, alpha, norm, layout):
    # The scale is a statistic and constant for autograd, so a number stands in for "variance".
    config = sk.ClusterConfig(
        k=3, max_clusters=4, kernel=kernel, alpha=alpha, score_norm=norm, distance_scale=0.15,
        bandwidth=0.7, temperature=0.6, beta=0.3, offset=0.4, stop_residual=0.0, min_mass=0.05,
    )  # fmt: skip
    packed, cu_seqlens, padded, mask = testing.ragged_batch(
        [7, 0, 5], 3, seed=2, dtype=torch.float64
    )
    padded = torch.where(mask[..., None], padded, 0.3)
    x, arguments = {
        "padded": (padded[:1], {}),
        "masked": (padded, dict(token_mask=mask)),
        "packed": (packed, dict(cu_seqlens=cu_seqlens)),
    }[layout]
    arguments["backend"] = backend
    decisions = sk.cluster_tokens(x, config, **arguments).decisions
    assert decisions.counts.max() > 1
    function = replayed(config, decisions, **arguments)
    inputs = leaves(config, x)
    if alpha == "sigmoid":
        torch.autograd.gradcheck(function, inputs)
    elif backend == "reference":
        # The straight-through gradient differs from the true one where the clamp is active.
        torch.autograd.gradcheck(unclamped(function, config), inputs)
    else:
        reference = replayed(config, decisions, **(arguments | dict(backend="reference")))
        for got, expected in zip(
            random_gradients(function, inputs), random_gradients(reference, inputs), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def random_gradients(function, inputs):
    """Gradients of a random combination of what the function returns."""
    generator = torch.Generator().manual_seed(0)
    out = function(*inputs)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in out)
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck_where_no_clamp_is_active(backend, kernel):
    """Scores between 0.05 and 0.6, similarities above 0.4: alpha="kernel" stays off its bounds."""
    config = sk.ClusterConfig(
        k=2, max_clusters=3, kernel=kernel, alpha="kernel", score_norm=None, distance_scale=0.1,
        bandwidth=8.0, beta=0.4, stop_residual=0.0,
    )  # fmt: skip
    x = testing.planted_clusters(1, 7, 3, 7, noise=0.5, dtype=torch.float64)[0]
    out = sk.cluster_tokens(x, config, backend=backend)
    scope = 1 - out.masks[0, :3].cumsum(0) + out.masks[0, :3]
    alpha = out.masks[0, :3] / scope
    assert alpha.min() > 0.011 and alpha.max() < 0.989
    function = replayed(config, out.decisions, backend=backend)
    torch.autograd.gradcheck(function, leaves(config, x))


def unclamped(function, config):
    """`function` with the clamp of alpha="kernel" moved out of reach."""

    def wide(*inputs):
        with pytest.MonkeyPatch.context() as patch:
            clamp = torch.Tensor.clamp
            patch.setattr(
                torch.Tensor, "clamp",
                lambda t, *a, **k: t.clone() if a == (0.01, 0.99) else clamp(t, *a, **k),
            )  # fmt: skip
            return function(*inputs)

    return wide


def test_straight_through_gradient_of_the_clamp(backend):
    """A clamped alpha has the value of the bound and the gradient of the unclamped alpha."""
    config = sk.ClusterConfig(
        k=1, max_clusters=1, alpha="kernel", distance_scale=1.0, score_norm=None,
        bandwidth=0.25, beta=torch.tensor(0.0, requires_grad=True),
    )  # fmt: skip
    x = torch.tensor([[[0.0], [0.125], [2.0]]], requires_grad=True)
    out = sk.cluster_tokens(x, config, backend=backend)
    seed = out.decisions.seeds[0, 0]
    assert out.masks[0, 0, seed] == torch.tensor(0.99)
    (slope,) = torch.autograd.grad(out.masks[0, 0, seed], config.beta)
    assert slope == -out.score[0, seed]


@pytest.mark.parametrize("seed", range(3))
def test_variance_scale_is_constant_for_autograd(backend, seed):
    x = testing.planted_clusters(1, 15, 4, 3, seed, 0.4, torch.float64)[0].requires_grad_()
    config = sk.ClusterConfig(max_clusters=5)
    out = sk.cluster_tokens(x, config, backend=backend)
    variance = x.detach()[0].var(0, unbiased=False).sum().item()
    fixed = dataclasses.replace(config, distance_scale=1 / (2 * variance))
    same = sk.cluster_tokens(x, fixed, decisions=out.decisions, backend=backend)
    weight = torch.randn(out.masks.shape, dtype=torch.float64)
    a, b = (torch.autograd.grad((o.masks * weight).sum(), x)[0] for o in (out, same))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@settings(max_examples=40)
@given(x=real_tokens(), config=configs, data=st.data())
def test_gradients_err_like_plain_pytorch(backend, x, config, data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    testing.assert_replayed_gradients(x.to(dtype), config, backend)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_is_finite_on_duplicates(backend, kernel):
    """The root of the laplacian has no slope at 0; its subgradient is 0."""
    x = testing.duplicate_tokens(2, 20, 3).requires_grad_()
    out = sk.cluster_tokens(x, sk.ClusterConfig(kernel=kernel), backend=backend)
    out.masks.square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).any()


@pytest.mark.parametrize("small", [4e-3, 5e-4, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_finite_where_alpha_vanishes(backend, dtype, small):
    """(phi - offset) / temperature around and far below the logarithm of the smallest number."""
    x = testing.planted_clusters(1, 20, 3, 3, dtype=dtype)[0].requires_grad_()
    temperature = torch.tensor(small, requires_grad=True)
    config = sk.ClusterConfig(temperature=temperature)
    out = sk.cluster_tokens(x, config, backend=backend)
    testing.assert_invariants(x, out, config)
    out.masks.square().sum().backward()
    assert x.grad.isfinite().all() and temperature.grad.isfinite()


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("weighted", [False, True])
def test_merge_and_unmerge_gradcheck(backend, mode, weighted):
    x = testing.planted_clusters(2, 8, 3, 3, noise=0.4, dtype=torch.float64)[0]
    config = sk.ClusterConfig(k=2, max_clusters=3, temperature=0.5, distance_scale=0.2)
    out = sk.cluster_tokens(x, config, backend=backend)
    weights = torch.rand(2, 8, dtype=torch.float64) + 0.1

    def function(x, weights, masks):
        given = dataclasses.replace(out, masks=masks)
        w = weights if weighted else None
        merged = sk.merge_tokens(x, given, mode, w, backend=backend)
        return merged, sk.unmerge_tokens(merged, given, mode, backend=backend)

    inputs = [t.detach().clone().requires_grad_() for t in (x, weights, out.masks)]
    torch.autograd.gradcheck(function, inputs)


def test_no_gradient_where_none_is_asked(backend):
    x = testing.planted_clusters(1, 9, 3, 3)[0]
    out = sk.cluster_tokens(x, backend=backend)
    assert not out.masks.requires_grad
    out = sk.cluster_tokens(x.requires_grad_(), backend=backend)
    assert out.masks.requires_grad and not out.labels.requires_grad
