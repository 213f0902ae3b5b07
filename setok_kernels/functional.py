"""Public functions: check the arguments, call a backend, attach the layout to the result."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from setok_kernels import checks
from setok_kernels.budgets import resolve_budget
from setok_kernels.config import ClusterConfig, DPCOptions, check_number
from setok_kernels.dispatch import select_backend
from setok_kernels.result import Clusters, Decisions, DensityPeaks, HardClusters, masks_of


def cluster_tokens(
    x: Tensor,
    config: ClusterConfig | None = None,
    *,
    num_clusters: int | Tensor | None = None,
    rate: float | Tensor | None = None,
    exact: bool = False,
    importance: Tensor | None = None,
    token_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    decisions: Decisions | None = None,
    backend: str = "auto",
    check_finite: bool = False,
) -> Clusters:
    """Group the tokens of each image into as many clusters as it needs (SeTok, Algorithm 1).

    The result is deterministic: no noise breaks ties, the lowest index wins everywhere. Neighbours,
    parents, seeds and counts are constants for autograd. Masks, density, delta and score are
    differentiable with respect to `x`, `importance` and tensor-valued options of `config`.

    Args:
        x: tokens, (B, N, D) or (B, H, W, D), or (T, D) with `cu_seqlens`; float64, float32,
            bfloat16 or float16 (accumulated in float32), any strides.
        config: options; None means `ClusterConfig()`.
        num_clusters: maximum number of seeds per image: a number, which replaces
            `config.max_clusters`, or (B,) int64 or int32 from 1 to `config.max_clusters`.
        rate: maximum number of seeds per image as a fraction in (0, 1] of its valid tokens, rounded
            up: a number, which sets `config.max_clusters` by the longest image, or (B,) floating
            point, bounded by `config.max_clusters`. None with `num_clusters`.
        exact: flag: as many seeds as the budget allows, or as there are finite tokens if fewer.
            `stop_residual` and `min_mass` do not stop the loop. A seed has its own row as label,
            and any other finite token the largest row before the residual. Needs
            `config.distinct_seeds`.
        importance: (B, N), (B, H, W) or (T,) weight of each token in the choice of seeds, floating
            point, finite and at least 0: multiplies density * delta before `score_norm`. On CUDA
            values are not checked; a negative or non-finite weight counts as 0.
        token_mask: (B, N) or (B, H, W) bool, True for valid tokens; padded input only.
        cu_seqlens: (B + 1,) int32 offsets of the images in packed input.
        max_seqlen: maximum number of tokens of an image in packed input. Required on CUDA, where
            reading it from `cu_seqlens` would synchronise; derived on the CPU when None.
        decisions: decisions of an earlier call, to replay; they also settle the number of seeds of
            each image. Its counts may be lowered: the seeds after them are ignored.
        backend: name of the backend: "auto" (the fastest that can run; on CUDA the Triton kernels
            once verified, see docs/gpu.md), "reference", "cpp" or "triton".
        check_finite: flag: raise if a valid token has a non-finite feature (waits for the device).
            Otherwise such a token is no seed, neighbour or parent and belongs to the residual.

    Returns:
        `Clusters`, which documents its shapes.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
        RuntimeError: the named backend cannot run here; the message has the reason.
    """
    config = ClusterConfig() if config is None else config
    checks.check_config(config)
    checks.check_exact(exact, config)
    batch = _Batch.of(x, token_mask, cu_seqlens, max_seqlen)
    rows, budget = batch.budget(num_clusters, rate, config.max_clusters)
    if rows is not None and rows != config.max_clusters:
        config = dataclasses.replace(config, max_clusters=rows)
    if importance is not None:
        checks.check_importance(importance, x, batch.valid)
        importance = importance.reshape(batch.x.shape[:-1])
    if decisions is not None:
        checks.check_decisions(
            decisions, tuple(batch.x.shape[:-1]), batch.images, batch.longest, config, x.device
        )
        decisions = decisions.cut()
    if check_finite:
        checks.check_finite_tokens(batch.x, batch.valid, cu_seqlens)
    chosen = select_backend(backend, x.device, x.dtype)
    out = chosen.cluster(*batch.arguments, config, decisions, importance, budget, exact)
    return batch.laid_out(out)


def dpc_knn(
    x: Tensor,
    num_clusters: int | Tensor | None = None,
    threshold: float | None = None,
    k: int = 5,
    token_mask: Tensor | None = None,
    noise: Tensor | None = None,
    backend: str = "auto",
    *,
    rate: float | Tensor | None = None,
    importance: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    min_clusters: int = 1,
    order: Literal["score", "index"] = "score",
    cap: Literal["diameter", "eccentricity"] = "diameter",
    check_finite: bool = False,
) -> DensityPeaks:
    """Hard one-shot clustering by density peaks (DPC-KNN; Du, Ding, Jia 2016).

    With d(i, j) = |x_i - x_j| / sqrt(D): density rho_i = exp(-mean of the k smallest d(i, j)^2, the
    token itself included), delta_i = distance to the nearest token of higher order (higher density,
    or equal and lower index), score s_i = rho_i * delta_i. Tokens of high score are centres. Every
    token goes to the nearest centre. Ties go to the lowest index or row, without noise.

    Args:
        x: tokens, (B, N, D) or (B, H, W, D), or (T, D) with `cu_seqlens`; float64, float32,
            bfloat16 or float16 (accumulated in float32), any strides.
        num_clusters: maximum number of centres per image; those of highest score. An image with
            fewer tokens has fewer. A number, or (B,) int64 or int32 of at least 1; then the result
            has as many rows as the longest image has tokens.
        threshold: score that a centre must exceed. With `num_clusters` both conditions hold;
            without, the result has as many rows as the longest image has tokens.
        k: number of neighbours in the density, the token itself included.
        token_mask: (B, N) or (B, H, W) bool, True for valid tokens; padded input only.
        noise: (B, N), (B, H, W) or (T,) tensor added to the density, as other implementations do
            to break ties; None for none.
        backend: name of the backend, see `cluster_tokens`.
        rate: maximum number of centres as a fraction in (0, 1] of the image's valid tokens, rounded
            up: a number, which sets the rows by the longest image, or (B,) floating point. None
            with `num_clusters`.
        importance: weight of each token in its score, (rho_i * delta_i) * w_i, see
            `cluster_tokens`.
        cu_seqlens: (B + 1,) int32 offsets of the images in packed input.
        max_seqlen: maximum number of tokens of an image, see `cluster_tokens`.
        min_clusters: number of centres of an image if no score exceeds `threshold`.
        order: order of the rows, "score" (descending) or "index" (ascending token).
        cap: upper bound of delta, and its value at the top token: "diameter", the maximum distance
            of the image, or "eccentricity", the minimum eccentricity (distance to the farthest
            token) among the tokens of no higher order, the token itself included.
        check_finite: flag, see `cluster_tokens`. Without it a non-finite token has label -1 and is
            no neighbour, parent or centre.

    Returns:
        `DensityPeaks`, which documents its shapes. It carries no gradient; use `merge_tokens`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
        RuntimeError: the named backend cannot run here; the message has the reason.
    """
    batch = _Batch.of(x, token_mask, cu_seqlens, max_seqlen)
    rows, budget = batch.budget(num_clusters, rate, None)
    options = DPCOptions(k, rows, threshold, min_clusters, order, cap, budgeted=budget is not None)
    if importance is not None:
        checks.check_importance(importance, x, batch.valid)
        importance = importance.reshape(batch.x.shape[:-1])
    if noise is not None:
        checks.check_noise(noise, x)
        noise = noise.reshape(batch.x.shape[:-1])
    if check_finite:
        checks.check_finite_tokens(batch.x, batch.valid, cu_seqlens)
    chosen = select_backend(backend, x.device, x.dtype)
    out = chosen.dpc_knn(*batch.arguments, noise, options, importance, budget)
    return batch.laid_out(out)


def threshold_greedy(
    x: Tensor,
    threshold: float,
    token_mask: Tensor | None = None,
    backend: str = "auto",
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    check_finite: bool = False,
) -> HardClusters:
    """Greedy clustering by cosine similarity (DiVT, CVPR 2026).

    Two tokens are neighbours if their similarity is above the threshold; a token is always its own
    neighbour. The token with the most neighbours becomes a centre and claims them. The next centre
    is the unclaimed token with the most neighbours in the full image (ties lowest index), until
    none is left. Then every token goes to the most similar centre (ties lowest centre). The loop
    terminates for every input. A zero vector has similarity 0 to any other token.

    Args:
        x: tokens, see `dpc_knn`.
        threshold: threshold of the cosine similarity; from 1 on every token is a centre.
        token_mask: mask of valid tokens, see `dpc_knn`.
        backend: name of the backend, see `cluster_tokens`.
        cu_seqlens: offsets of the images, see `dpc_knn`.
        max_seqlen: maximum number of tokens of an image, see `cluster_tokens`.
        check_finite: flag, see `dpc_knn`.

    Returns:
        `HardClusters` with one row per token of the longest image, centres in ascending order.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
        RuntimeError: the named backend cannot run here; the message has the reason.
    """
    check_number("threshold", threshold)
    batch = _Batch.of(x, token_mask, cu_seqlens, max_seqlen)
    if check_finite:
        checks.check_finite_tokens(batch.x, batch.valid, cu_seqlens)
    out = select_backend(backend, x.device, x.dtype).threshold_greedy(*batch.arguments, threshold)
    return batch.laid_out(out)


def merge_tokens(
    x: Tensor,
    out: Clusters | HardClusters,
    mode: Literal["hard", "soft"] = "hard",
    weights: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """Merge the tokens of each cluster into one: sum_i w_i A_ci x_i / sum_i w_i A_ci.

    Args:
        x: clustered tokens, or others of the same layout with any feature dimension.
        out: result of `cluster_tokens`, `dpc_knn` or `threshold_greedy`, or one built by hand;
            int32 indices and 16-bit masks are widened.
        mode: assignment A: "hard" averages the members of each label (A_ci = 1 where label_i = c);
            "soft" weighs every token by its mask (A = masks, `cluster_tokens` only) and adds `eps`
            to the denominator.
        weights: weight of each token, (B, N), (B, H, W) or (T,), finite and at least 0; None means
            1. On CUDA and in a compiled call of the reference the values are not checked: a row
            with a negative or non-finite weight is not a mean.
        eps: constant in the denominator when soft, at least 0.
        backend: name of the backend, see `cluster_tokens`.

    Returns:
        (B, out.num_rows, D) in the dtype of `x`; rows without members (hard) or beyond the
        residual (soft) are 0. A non-finite token has weight 0. Differentiable with respect to
        `x`, `weights` and, when soft, the masks. `out.pack` turns it into ragged tokens.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    out = checks.check_clusters(out, mode)
    check_number("eps", eps, least=0)
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
    chosen = select_backend(backend, x.device, *_dtypes(x, out, mode))
    return chosen.merge(x, out, mode, weights, eps)


def unmerge_tokens(
    tokens: Tensor,
    out: Clusters | HardClusters,
    mode: Literal["hard", "soft"] = "hard",
    backend: str = "auto",
) -> Tensor:
    """Spread the cluster tokens back to all tokens: y_i = sum_c A_ci t_c, the transposed merge.

    Args:
        tokens: cluster tokens, (B, out.num_rows, D), as `merge_tokens` returns them.
        out: result of `cluster_tokens`, `dpc_knn` or `threshold_greedy`.
        mode: assignment A: "hard" takes the token of the label, "soft" mixes by the masks.
        backend: name of the backend, see `cluster_tokens`.

    Returns:
        (B, N, D), (B, H, W, D) or (T, D) like the clustered input, in the dtype of `tokens`;
        masked tokens are 0. Differentiable with respect to `tokens` and, when soft, the masks.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    out = checks.check_clusters(out, mode)
    checks.check_float("tokens", tokens)
    expected = (out.counts.shape[0], out.num_rows, tokens.shape[-1] if tokens.dim() else 1)
    checks.check_shape("tokens", tokens, expected)
    checks.check_device("tokens", tokens, out.labels.device)
    chosen = select_backend(backend, tokens.device, *_dtypes(tokens, out, mode))
    spread = chosen.unmerge(tokens, out, mode)
    return spread if out.grid is None else spread.unflatten(1, out.grid)


def _dtypes(tokens: Tensor, out: Clusters | HardClusters, mode: str) -> tuple[torch.dtype, ...]:
    """Return the dtypes that the merge computes with."""
    return (tokens.dtype, masks_of(out).dtype) if mode == "soft" else (tokens.dtype,)


def _leading_shape(out: Clusters | HardClusters, x: Tensor) -> tuple[int, ...]:
    """Return the expected shape of `x` without features: the labels' shape, or the grid's."""
    if out.grid is not None and x.dim() == 4:
        return (out.labels.shape[0], *out.grid)
    return tuple(out.labels.shape)


@dataclass(frozen=True)
class _Batch:
    """Checked tokens of several images, padded or packed.

    Attributes:
        x: tokens, (B, N, D) or (T, D).
        valid: (B, N) bool or None.
        images: number of images B.
        longest: maximum number of tokens of an image.
        layout: `grid`, `cu_seqlens` and `max_seqlen` of the result.
    """

    x: Tensor
    valid: Tensor | None
    images: int
    longest: int
    layout: dict

    @classmethod
    def of(cls, x, token_mask, cu_seqlens, max_seqlen) -> "_Batch":
        """Check the arguments of a public function and build the batch."""
        packed, grid, valid = cu_seqlens is not None, None, None
        checks.check_x(x, packed)
        if packed:
            longest = max_seqlen = checks.check_packing(x, cu_seqlens, max_seqlen, token_mask)
            images = cu_seqlens.shape[0] - 1
        else:
            if max_seqlen is not None:
                raise ValueError(
                    f"max_seqlen: expected None without cu_seqlens, got {max_seqlen!r}"
                )
            if x.dim() == 4:
                grid = tuple(x.shape[1:3])
            if token_mask is not None:
                checks.check_mask(token_mask, x)
                valid = token_mask.flatten(1)
            x = x.flatten(1, -2)
            images, longest = x.shape[:2]
        layout = dict(grid=grid, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        return cls(x, valid, images, longest, layout)

    def budget(self, num_clusters, rate, most: int | None) -> tuple[int | None, Tensor | None]:
        """Return the rows and the clusters per image of a budget, see `resolve_budget`."""
        if num_clusters is None and rate is None:
            return None, None
        lengths, cu_seqlens = None, self.layout["cu_seqlens"]
        if self.valid is not None:
            lengths = self.valid.sum(1)
        elif cu_seqlens is not None:
            lengths = cu_seqlens.diff()
        return resolve_budget(
            num_clusters, rate, lengths, self.images, self.longest, self.x.device, most
        )

    def laid_out(self, out):
        """Return the result with its layout attached."""
        # (B, N, D) has no layout; skipping the copy saves microseconds.
        if all(value is None for value in self.layout.values()):
            return out
        return dataclasses.replace(out, **self.layout)

    @property
    def arguments(self) -> tuple:
        """The first four arguments of every function of a backend."""
        return self.x, self.valid, self.layout["cu_seqlens"], self.layout["max_seqlen"]
