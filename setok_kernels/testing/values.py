"""Tier 3 of the comparison: values and gradients under replayed decisions, and invariants."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from setok_kernels import layout
from setok_kernels.config import LEARNABLE, ClusterConfig
from setok_kernels.functional import cluster_tokens
from setok_kernels.result import Clusters
from setok_kernels.testing.decisions import assert_same_decisions, assert_valid_decisions

_VALUES = ("density", "delta", "score", "masks")

# Error always allowed, in roundings of the maximum value: short sums may err by chance.
_MIN_ROUNDINGS = 16

# Number of losses whose gradients are compared together. A scalar gradient is a sum of cancelling
# terms, and plain PyTorch's error of a single one may be small by chance.
_LOSSES = 4

# Number of feature orders in which plain PyTorch's error is measured; that of one order may be
# small by chance.
_ORDERS = 3


def assert_replayed_values(
    x: Tensor,
    out: Clusters,
    config: ClusterConfig,
    token_mask: Tensor | None = None,
    importance: Tensor | None = None,
) -> None:
    """Assert that density, delta, score and masks err at most twice as much as plain PyTorch.

    The truth is the reference in float64 with the decisions of `out` replayed. Plain PyTorch is the
    same replay in the dtype of `x`, with the maximum error over a few orders of the features. For
    float64 input its error is that of float32, scaled by the ratio of the roundoffs.

    Raises:
        AssertionError: a value errs more; the message has its name, error and allowed error.
    """
    weight = None if importance is None else importance.to(out.score.dtype)
    with torch.no_grad():
        low, ratio = _lower(x)
        truth = _replay(x.double(), out, config, token_mask, weight)
        plain_truth = _replay(low.double(), out, config, token_mask, weight)
        plain = [
            _replay(low[..., order], out, config, token_mask, weight) for order in feature_orders(x)
        ]
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
    importance: Tensor | None = None,
) -> None:
    """Assert that the gradients of x, importance and hyper-parameters err at most twice as much.

    The comparison is with plain PyTorch, as in `assert_replayed_values`. The losses are fixed
    random combinations of masks, density, delta and score.

    Raises:
        AssertionError: a gradient errs more; the message has its name, error and allowed error.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = None if importance is None else importance.detach().to(wide)
    first = cluster_tokens(
        x.detach(),
        config,
        importance=given,
        token_mask=token_mask,
        cu_seqlens=cu_seqlens,
        backend=backend,
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
        own = None if given is None else given.detach().to(dtype).requires_grad_()
        out = _replay(x, first, dataclasses.replace(config, **leaves), token_mask, own, backend)
        generator = torch.Generator().manual_seed(seed)
        inputs, found = [x, *leaves.values(), *([] if own is None else [own])], []
        for _ in range(_LOSSES):
            loss = 0
            for name in _VALUES:
                value = getattr(out, name)
                weight = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                loss = loss + (value * weight.to(value)).sum()
            found.append(
                torch.autograd.grad(
                    loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            )
        return [torch.stack(grads) for grads in zip(*found, strict=True)]

    got = gradients(x, backend)
    truth = gradients(x.double(), "reference")
    low, ratio = _lower(x)
    plain_truth, plain = gradients(low.double(), "reference"), []
    for order in feature_orders(x):
        grad_x, *others = gradients(low[..., order], "reference")
        plain.append([grad_x[..., order.argsort()], *others])
    worst = [torch.stack(measured) for measured in zip(*plain, strict=True)]
    names = ("x", *LEARNABLE, *([] if given is None else ["importance"]))
    for values in zip(names, got, truth, worst, plain_truth, strict=True):
        assert_error(f"gradient of {values[0]}", *values[1:], ratio)


def feature_orders(x: Tensor) -> list[Tensor]:
    """Return permutations of the features of `x`; the first is the identity."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(x.shape[-1], generator=generator) for _ in range(_ORDERS - 1)]
    return [torch.arange(x.shape[-1], device=x.device), *(order.to(x.device) for order in orders)]


def assert_invariants(
    x: Tensor,
    out: Clusters,
    config: ClusterConfig,
    token_mask: Tensor | None = None,
    exact_budget: bool = False,
) -> None:
    """Assert the ranges, sums, zeros, dtypes and shapes that hold whatever the decisions are.

    Args:
        x: input of the clustering, any layout.
        out: result of the clustering.
        config: options of the clustering.
        token_mask: mask of valid tokens.
        exact_budget: argument `exact` of `cluster_tokens`.

    Raises:
        AssertionError: an invariant does not hold; the message has its name.
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
        assert (value[~(valid & finite)] == 0).all(), f"{name}: not 0 on an excluded token"
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
    expected = masks.detach()
    if exact_budget:
        live = valid & finite & (counts > 0)
        last = (row >= counts[..., None]) & live[..., None]
        expected = expected.masked_fill(last, -1).masked_fill(_is_seed(out), torch.inf)
    assert (out.labels == expected.argmax(-1))[valid].all(), "labels: not the largest mask"


def _is_seed(out: Clusters) -> Tensor:
    """Return (B, N, C + 1) or (T, C + 1) bool, True where the token is the seed of the row."""
    seeds = torch.nn.functional.pad(out.decisions.seeds, (0, 1), value=-1)
    if out.cu_seqlens is None:
        token = torch.arange(out.labels.shape[1], device=seeds.device)
        return seeds[:, None] == token[:, None]
    image, token = layout.token_positions(out.cu_seqlens, out.labels.shape[0])
    return seeds[image] == token[:, None]


def check_backend(
    backend: str,
    x: Tensor,
    config: ClusterConfig,
    token_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    exact: bool = False,
    input_roundoff: float = 0.0,
    *,
    importance: Tensor | None = None,
    budget: Tensor | None = None,
    exact_budget: bool = False,
) -> Clusters:
    """Run `backend` and all comparisons of a forward pass, and return the result.

    Args:
        backend: name of the backend under test.
        x: input of the clustering, any layout.
        config: options of the clustering.
        token_mask: mask of valid tokens, padded input only.
        cu_seqlens: offsets of packed input.
        exact: flag: `x` is exactly representable, so decisions must equal the reference's.
        input_roundoff: relative rounding of the inputs, see `assert_valid_decisions`.
        importance: argument of `cluster_tokens`; powers of two or 0 if `exact`.
        budget: argument `num_clusters` of `cluster_tokens`, a tensor.
        exact_budget: argument `exact` of `cluster_tokens`.

    Raises:
        AssertionError: a comparison fails; the message is that of the first one.
    """
    arguments: dict[str, Any] = dict(
        num_clusters=budget,
        exact=exact_budget,
        importance=importance,
        token_mask=token_mask,
        cu_seqlens=cu_seqlens,
    )
    out = cluster_tokens(x, config, **arguments, backend=backend)
    assert_invariants(x, out, config, token_mask, exact_budget)
    assert_valid_decisions(
        x,
        out,
        config,
        token_mask,
        input_roundoff,
        importance=importance,
        budget=budget,
        exact_budget=exact_budget,
    )
    if exact:
        expected = cluster_tokens(x, config, **arguments, backend="reference")
        assert_same_decisions(x, out, expected, token_mask, importance)
    assert_replayed_values(x, out, config, token_mask, importance)
    return out


def _replay(
    x: Tensor,
    out: Clusters,
    config: ClusterConfig,
    token_mask: Tensor | None,
    importance: Tensor | None,
    backend: str = "reference",
) -> Clusters:
    return cluster_tokens(
        x,
        config,
        importance=importance,
        token_mask=token_mask,
        cu_seqlens=out.cu_seqlens,
        max_seqlen=out.max_seqlen,
        decisions=out.decisions,
        backend=backend,
    )


def _lower(x: Tensor) -> tuple[Tensor, float]:
    """Return the input on which plain PyTorch's error is measured, and the factor of the error."""
    if x.dtype == torch.float64:
        return x.float(), 2.0**-53 / 2.0**-24
    return x, 1.0


def assert_error(name, got, truth, plain, plain_truth, ratio) -> None:
    """Assert |got - truth| <= 2 |plain - plain_truth| for the maxima over all elements."""
    if truth.numel() == 0:
        return
    error = (got.double() - truth.double()).abs().max()
    # For float64 the truth has the same error as plain PyTorch.
    factor = 2 if ratio == 1 else 4
    baseline = (plain.double() - plain_truth.double()).abs().max() * ratio
    roundoff = torch.finfo(got.dtype).eps / 2
    allowed = factor * baseline + _MIN_ROUNDINGS * roundoff * truth.abs().max()
    assert error <= allowed, (
        f"{name}: error {error:.3g}, allowed {allowed:.3g} (plain PyTorch {baseline:.3g})"
    )
