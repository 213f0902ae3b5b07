"""Common code of the drop-ins for TCFormer and Chat-UniVi, which both take a `token_dict`."""

from typing import Any

import torch
from torch import Tensor

from setok_kernels import checks
from setok_kernels.config import check_count
from setok_kernels.functional import dpc_knn
from setok_kernels.functional import merge_tokens as merge_rows
from setok_kernels.result import HardClusters


def cluster_dpc_knn(
    token_dict: dict[str, Any],
    cluster_num: int,
    k: int = 5,
    token_mask: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, int]:
    """Cluster tokens by density peaks; the cluster numbers follow descending score.

    Intended differences from the original:

    - The result is deterministic. The original adds `1e-6 * torch.rand(B, N)` to the density in
      every call. Pass that tensor as `noise` to reproduce its result.
    - Padding is never a centre and does not change the result. The original gives padded tokens the
      maximum distance of the batch, padding and its features included. If an image has fewer tokens
      than `cluster_num`, its last clusters stay empty.
    - Fewer tokens than `k` are not an error: the density is the mean over the existing ones.
    - 16-bit tokens are clustered by sums in float32.

    Args:
        token_dict: dict with "x" (B, N, C); float64, float32, bfloat16 or float16.
        cluster_num: number of clusters of each image, at least 1.
        k: number of neighbours in the local density, the token itself included.
        token_mask: (B, N) mask, above 0 for valid tokens.
        noise: (B, N) tensor added to the density; None for none.
        backend: name of the backend, see `sk.cluster_tokens`.

    Returns:
        idx_cluster: (B, N) int64 cluster of each token in [0, cluster_num); 0 for padding, as in
            the original.
        cluster_num: the argument, unchanged.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    x = _tokens(token_dict)
    check_count("cluster_num", cluster_num)
    if token_mask is not None:
        checks.check_tensor("token_mask", token_mask)
        token_mask = token_mask > 0
    out = dpc_knn(x, cluster_num, k=k, token_mask=token_mask, noise=noise, backend=backend)
    return out.labels.clamp(min=0), cluster_num


def merge_tokens(
    token_dict: dict[str, Any],
    idx_cluster: Tensor,
    cluster_num: int,
    token_weight: Tensor | None,
    backend: str,
) -> dict[str, Any]:
    """Return the entries "x", "token_num", "idx_token" and "agg_weight" of the merged tokens.

    x_c = sum_i w_i x_i / (sum_i w_i + 1e-6) over the members i of cluster c. Differentiable with
    respect to x and `token_weight`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    x = _tokens(token_dict)
    check_count("cluster_num", cluster_num)
    batch, tokens, _ = x.shape
    checks.check_shape("idx_cluster", idx_cluster, (batch, tokens))
    checks.check_device("idx_cluster", idx_cluster, x.device)
    checks.check_labels("idx_cluster", idx_cluster, cluster_num)
    if token_weight is None:
        token_weight = x.new_ones(batch, tokens, 1)
    checks.check_float("token_weight", token_weight)
    checks.check_shape("token_weight", token_weight, (batch, tokens, 1))
    # Callers often mark padding by a weight of -inf, as in logits.
    token_weight = token_weight.masked_fill(token_weight == -torch.inf, 0)
    out = HardClusters(
        labels=idx_cluster,
        centres=idx_cluster.new_full((batch, cluster_num), -1),
        counts=idx_cluster.new_full((batch,), cluster_num),
    )
    mean = merge_rows(x, out, weights=token_weight[..., 0], backend=backend)
    # Sums as means times sizes: the merge is deterministic on every device.
    mass = merge_rows(token_weight, out, backend=backend) * out.sizes()[..., None]
    fraction = token_weight / (mass + 1e-6).gather(1, idx_cluster[..., None])
    fraction = fraction.to(token_weight.dtype)
    # Chat-UniVi creates it on the CPU, whatever the device of x.
    idx_token = token_dict["idx_token"].to(x.device, torch.int64)
    return {
        "x": (mean * (mass / (mass + 1e-6))).to(x.dtype),
        "token_num": cluster_num,
        "idx_token": idx_cluster.gather(1, idx_token),
        "agg_weight": token_dict["agg_weight"] * fraction.gather(1, idx_token[..., None]),
    }


def _tokens(token_dict: dict[str, Any]) -> Tensor:
    if not isinstance(token_dict, dict) or "x" not in token_dict:
        got = sorted(token_dict) if isinstance(token_dict, dict) else type(token_dict).__name__
        raise TypeError(f"token_dict: expected a dict with a tensor 'x', got {got}")
    checks.check_float("token_dict['x']", token_dict["x"])
    if token_dict["x"].dim() != 3:
        raise ValueError(
            f"token_dict['x']: expected shape (B, N, C), got {tuple(token_dict['x'].shape)}"
        )
    return token_dict["x"]
