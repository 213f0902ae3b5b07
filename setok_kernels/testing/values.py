"""Tier 3 of the comparison: values and gradients under replayed decisions, and the invariants."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from setok_kernels.config import LEARNABLE, ClusterConfig
from setok_kernels.functional import cluster_tokens
from setok_kernels.result import Clusters
from setok_kernels.testing.decisions import assert_same_decisions, assert_valid_decisions

_VALUES = ("density", "delta", "score", "masks")

# Roundings of the largest value: below this the maximum error of a short sum is a matter of luck.
_FLOOR = 16

# Losses whose gradients are compared together: plain PyTorch's error of a gradient that is a single
# number, the sum of terms that cancel, is a matter of luck for one of them.
_DRAWS = 4

# Orders of the features in which plain PyTorch's error is measured: that of one order may happen to
# be small.
_ORDERS = 3


def assert_replayed_values(
    x: Tensor, out: Clusters, config: ClusterConfig, token_mask: Tensor | None = None
) -> None:
    """density, delta, score and masks err at most twice as much as plain PyTorch.

    The truth is the reference in float64 with the decisions of `out` replayed; plain PyTorch is
    the reference in the dtype of `x`, likewise, at its worst of a few orders of the features. For
    float64 input the error of plain PyTorch is that of float32 on the same input, scaled by the
    ratio of the roundoffs.

    Raises:
        AssertionError: names the value, its error and what was allowed.
    """
    with torch.no_grad():
        low, ratio = _lower(x)
        truth = _replay(x.double(), out, config, token_mask)
        plain_truth = _replay(low.double(), out, config, token_mask)
        plain = [_replay(low[..., order], out, config, token_mask) for order in feature_orders(x)]
        for name in _VALUES:
            measured = torch.stack([getattr(replay, name) for replay in plain])
            assert_error(
                name,
                getattr(out, name),
                getattr(truth, name),
                measured,
                getattr(plain_truth, name),
                ratio,
            )


def assert_replayed_gradients(
    x: Tensor,
    config: ClusterConfig,
    backend: str,
    token_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    seed: int = 0,
) -> None:
    """Gradients of x and of the four hyper-parameters err at most twice as much as plain PyTorch.

    The losses are fixed random combinations of masks, density, delta and score.

    Raises:
        AssertionError: names the gradient, its error and what was allowed.
    """
    first = cluster_tokens(
        x.detach(), config, token_mask=token_mask, cu_seqlens=cu_seqlens, backend=backend
    )

    def gradients(x, backend):
        x = x.detach().requires_grad_()
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        leaves = {
            name: torch.as_tensor(float(getattr(config, name)), dtype=dtype, device=x.device)
            for name in LEARNABLE
        }
        for leaf in leaves.values():
            leaf.requires_grad_()
        out = _replay(x, first, dataclasses.replace(config, **leaves), token_mask, backend)
        generator = torch.Generator().manual_seed(seed)
        inputs, draws = [x, *leaves.values()], []
        for _ in range(_DRAWS):
            loss = 0
            for name in _VALUES:
                value = getattr(out, name)
                weight = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                loss = loss + (value * weight.to(value)).sum()
            draws.append(
                torch.autograd.grad(
                    loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            )
        return [torch.stack(grads) for grads in zip(*draws, strict=True)]

    got = gradients(x, backend)
    truth = gradients(x.double(), "reference")
    low, ratio = _lower(x)
    plain_truth, plain = gradients(low.double(), "reference"), []
    for order in feature_orders(x):
        of_x, *others = gradients(low[..., order], "reference")
        plain.append([of_x[..., order.argsort()], *others])
    worst = [torch.stack(measured) for measured in zip(*plain, strict=True)]
    for values in zip(("x", *LEARNABLE), got, truth, worst, plain_truth, strict=True):
        assert_error(f"gradient of {values[0]}", *values[1:], ratio)


def feature_orders(x: Tensor) -> list[Tensor]:
    """Permutations of the features of `x`, the first of them none."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(x.shape[-1], generator=generator) for _ in range(_ORDERS - 1)]
    return [torch.arange(x.shape[-1], device=x.device), *(order.to(x.device) for order in orders)]


def assert_invariants(
    x: Tensor, out: Clusters, config: ClusterConfig, token_mask: Tensor | None = None
) -> None:
    """What every result satisfies whatever its decisions: ranges, sums, zeros, dtypes and shapes.

    Raises:
        AssertionError: names the invariant.
    """
    leading, rows = out.labels.shape, config.max_clusters + 1
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    valid = (
        torch.ones(leading, dtype=torch.bool, device=x.device)
        if token_mask is None
        else token_mask.reshape(leading)
    )
    finite = x.reshape(*leading, x.shape[-1]).isfinite().all(-1)
    masks = out.masks.mT  # (B, N, C + 1) or (T, C + 1)
    assert masks.shape == (*leading, rows), f"masks: shape {tuple(out.masks.shape)}"
    for name in _VALUES:
        value = getattr(out, name)
        assert value.dtype == dtype, f"{name}: dtype {value.dtype}, expected {dtype}"
        assert value.isfinite().all(), f"{name}: not finite"
        assert (value >= 0).all(), f"{name}: negative"
    for name in ("density", "delta", "score"):
        value = getattr(out, name)
        assert value.shape == leading, f"{name}: shape {tuple(value.shape)}"
        assert (value[~(valid & finite)] == 0).all(), f"{name}: not 0 where a token takes no part"
    assert (out.density <= 1).all(), "density: above 1"
    assert (out.masks <= 1).all(), "masks: above 1"
    assert (masks[~valid] == 0).all(), "masks: not 0 on a masked token"
    # Each step rounds the mask and the scope once.
    slack = 4 * rows * torch.finfo(dtype).eps
    assert ((masks.sum(-1) - 1).abs()[valid] <= slack).all(), "masks: rows do not sum to 1"
    counts = out.counts
    if out.cu_seqlens is None:
        counts = counts[:, None]
    else:
        lengths = out.cu_seqlens.diff().long()
        counts = counts.repeat_interleave(lengths)
    row = torch.arange(rows, device=x.device)
    beyond = (row > counts[..., None]).expand_as(masks)
    assert (masks[beyond] == 0).all(), "masks: not 0 beyond the residual"
    residual = (row == counts[..., None]).expand_as(masks) & (valid & ~finite)[..., None]
    assert (masks[residual] == 1).all(), "masks: a non-finite token is not all residual"
    assert (out.labels[~valid] == -1).all(), "labels: not -1 on a masked token"
    assert (out.labels[valid] == masks[valid].argmax(-1)).all(), "labels: not the largest mask"


def check_backend(
    backend: str,
    x: Tensor,
    config: ClusterConfig,
    token_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    exact: bool = False,
    input_roundoff: float = 0.0,
) -> Clusters:
    """Run `backend` and every comparison of a forward pass; returns its result.

    Args:
        backend: name of the backend under test.
        x: input, any layout.
        config: options.
        token_mask: mask of padded input.
        cu_seqlens: offsets of packed input.
        exact: `x` is exactly representable: decisions must be those of the reference.
        input_roundoff: see `assert_valid_decisions`.

    Raises:
        AssertionError: from the first comparison that fails.
    """
    arguments: dict[str, Any] = dict(token_mask=token_mask, cu_seqlens=cu_seqlens)
    out = cluster_tokens(x, config, **arguments, backend=backend)
    assert_invariants(x, out, config, token_mask)
    assert_valid_decisions(x, out, config, token_mask, input_roundoff)
    if exact:
        expected = cluster_tokens(x, config, **arguments, backend="reference")
        assert_same_decisions(x, out, expected, token_mask)
    assert_replayed_values(x, out, config, token_mask)
    return out


def _replay(x, out: Clusters, config, token_mask, backend="reference") -> Clusters:
    return cluster_tokens(
        x,
        config,
        token_mask=token_mask,
        cu_seqlens=out.cu_seqlens,
        max_seqlen=out.max_seqlen,
        decisions=out.decisions,
        backend=backend,
    )


def _lower(x: Tensor) -> tuple[Tensor, float]:
    """The input on which plain PyTorch's error is measured, and the factor to apply to it."""
    if x.dtype == torch.float64:
        return x.float(), 2.0**-53 / 2.0**-24
    return x, 1.0


def assert_error(name, got, truth, plain, plain_truth, ratio) -> None:
    """|got - truth| <= 2 |plain - plain_truth|, by the maximum over all elements."""
    if truth.numel() == 0:
        return
    error = (got.double() - truth.double()).abs().max()
    # In float64 the truth itself errs as much as plain PyTorch does.
    factor = 2 if ratio == 1 else 4
    own = (plain.double() - plain_truth.double()).abs().max() * ratio
    roundoff = torch.finfo(got.dtype).eps / 2
    allowed = factor * own + _FLOOR * roundoff * truth.abs().max()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} (plain {own:.3g})"
