"""The public functions: validate, call a backend, wrap."""

import dataclasses

from torch import Tensor

from setok_kernels import checks
from setok_kernels.config import ClusterConfig
from setok_kernels.dispatch import select_backend
from setok_kernels.result import Clusters, Decisions


def cluster_tokens(
    x: Tensor,
    config: ClusterConfig | None = None,
    *,
    token_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    decisions: Decisions | None = None,
    backend: str = "auto",
    check_finite: bool = False,
) -> Clusters:
    """Group the tokens of each image into as many clusters as it needs (SeTok, Algorithm 1).

    Deterministic: no noise breaks ties, the lowest index wins everywhere. Neighbours, parents,
    seeds and counts are constants for autograd; masks, density, delta and score are
    differentiable with respect to `x` and to tensor-valued options of `config`.

    Args:
        x: (B, N, D) or (B, H, W, D), or (T, D) with `cu_seqlens`; float64, float32, bfloat16 or
            float16 (accumulated in float32), any strides.
        config: options; None means `ClusterConfig()`.
        token_mask: (B, N) or (B, H, W) bool, True for tokens that exist; padded input only.
        cu_seqlens: (B + 1,) int32 offsets of the images in packed input.
        max_seqlen: most tokens of an image in packed input. Required on CUDA, where reading it
            from `cu_seqlens` would synchronise; derived on the CPU when None.
        decisions: choices of an earlier call to replay instead of making them.
        backend: "auto" (the fastest that can run), "reference", "cpp" or "triton".
        check_finite: raise if a valid token has a non-finite feature (waits for the device).
            Without it such a token is no seed, neighbour or parent and belongs to the residual.

    Returns:
        `Clusters`; see there for shapes.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
        RuntimeError: the named backend cannot run here; the message says why.
    """
    config = ClusterConfig() if config is None else config
    checks.check_config(config)
    packed = cu_seqlens is not None
    checks.check_x(x, packed)
    grid, valid = None, None
    if packed:
        max_seqlen = checks.check_packing(x, cu_seqlens, max_seqlen, token_mask)
        tokens, images, longest = (x.shape[0],), cu_seqlens.shape[0] - 1, max_seqlen
    else:
        if max_seqlen is not None:
            raise ValueError(f"max_seqlen: expected None without cu_seqlens, got {max_seqlen!r}")
        if x.dim() == 4:
            grid = tuple(x.shape[1:3])
        if token_mask is not None:
            checks.check_mask(token_mask, x)
            valid = token_mask.flatten(1)
        x = x.flatten(1, -2)
        tokens, images, longest = tuple(x.shape[:2]), x.shape[0], x.shape[1]
    if decisions is not None:
        checks.check_decisions(decisions, tokens, images, longest, config, x.device)
    if check_finite:
        checks.check_finite_tokens(x, valid, cu_seqlens)
    chosen = select_backend(backend, x.device)
    out = chosen.cluster(x, valid, cu_seqlens, max_seqlen, config, decisions)
    return dataclasses.replace(out, grid=grid, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)


def merge_tokens(
    x: Tensor,
    out: Clusters,
    mode: str = "hard",
    weights: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """One token per cluster: sum_i w_i A_ci x_i / sum_i w_i A_ci.

    Args:
        x: the tokens that `out` came from, or others of the same layout with any feature
            dimension.
        out: result of `cluster_tokens`.
        mode: "hard" averages the members of each label (A_ci = 1 where label_i = c); "soft"
            weighs every token by its mask (A = masks) and adds `eps` to the denominator.
        weights: non-negative weight of each token, (B, N), (B, H, W) or (T,); None means 1.
        eps: see `mode`.
        backend: as in `cluster_tokens`.

    Returns:
        (B, max_clusters + 1, D) in the dtype of `x`; rows without members (hard) or beyond the
        residual (soft) are 0. A non-finite token has weight 0. Differentiable with respect to
        `x`, `weights` and, when soft, the masks. `out.pack` makes it ragged.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    checks.check_clusters(out)
    checks.check_mode(mode)
    checks.check_float("x", x)
    leading = _leading_shape(out, x)
    checks.check_shape("x", x, (*leading, x.shape[-1] if x.dim() else 1))
    checks.check_device("x", x, out.labels.device)
    if weights is not None:
        checks.check_float("weights", weights)
        if tuple(weights.shape) not in (leading, tuple(out.labels.shape)):
            raise ValueError(f"weights: expected shape {leading}, got {tuple(weights.shape)}")
        checks.check_device("weights", weights, x.device)
        weights = weights.reshape(out.labels.shape)
    x = x.reshape(*out.labels.shape, x.shape[-1])
    return select_backend(backend, x.device).merge(x, out, mode, weights, eps)


def unmerge_tokens(
    tokens: Tensor, out: Clusters, mode: str = "hard", backend: str = "auto"
) -> Tensor:
    """Give every token its cluster's token back: y_i = sum_c A_ci t_c, the transpose of the merge.

    Args:
        tokens: (B, max_clusters + 1, D), as `merge_tokens` returns them.
        out: result of `cluster_tokens`.
        mode: "hard" takes the token of the label, "soft" mixes by the masks.
        backend: as in `cluster_tokens`.

    Returns:
        (B, N, D), (B, H, W, D) or (T, D) like the clustered input, in the dtype of `tokens`;
        masked tokens are 0. Differentiable with respect to `tokens` and, when soft, the masks.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    checks.check_clusters(out)
    checks.check_mode(mode)
    checks.check_float("tokens", tokens)
    expected = (out.counts.shape[0], out.num_rows, tokens.shape[-1] if tokens.dim() else 1)
    checks.check_shape("tokens", tokens, expected)
    checks.check_device("tokens", tokens, out.labels.device)
    spread = select_backend(backend, tokens.device).unmerge(tokens, out, mode)
    return spread if out.grid is None else spread.unflatten(1, out.grid)


def _leading_shape(out: Clusters, x: Tensor) -> tuple[int, ...]:
    """Shape of `x` without features: that of the labels, or the grid where `x` has one."""
    if out.grid is not None and x.dim() == 4:
        return (out.labels.shape[0], *out.grid)
    return tuple(out.labels.shape)
