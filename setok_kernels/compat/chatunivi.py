"""Drop-in for Chat-UniVi (CVPR 2024; `ChatUniVi/model/cluster.py`)."""

from typing import Any

from torch import Tensor

from setok_kernels.compat import token_dict as shared
from setok_kernels.compat.token_dict import cluster_dpc_knn

__all__ = ["cluster_dpc_knn", "merge_tokens"]


def merge_tokens(
    token_dict: dict[str, Any],
    idx_cluster: Tensor,
    cluster_num: int,
    token_weight: Tensor | None = None,
    *,
    backend: str = "auto",
) -> dict[str, Any]:
    """Average the tokens of each cluster: x_c = sum_i w_i x_i / (sum_i w_i + 1e-6).

    Intended differences from the original: a weight of -inf, which its `CTM` gives to padding,
    counts as 0 (the original returns NaN). A token with a non-finite feature also counts as 0. Sums
    are deterministic on every device.

    Args:
        token_dict: dict with "x" (B, N, C), "idx_token" (B, N_init) int64 token of each initial
            position, on any device, and "agg_weight" (B, N_init, 1).
        idx_cluster: (B, N) int64 cluster of each token, in [0, cluster_num).
        cluster_num: number of clusters of each image.
        token_weight: (B, N, 1) weight of each token; None means 1.
        backend: name of the backend, see `sk.cluster_tokens`.

    Returns:
        dict: "x" (B, cluster_num, C) in the dtype of x, 0 in clusters without members; "token_num"
        cluster_num; "idx_token" (B, N_init); "agg_weight" (B, N_init, 1), not normalised, as in the
        original; "mask" None. "x" and "agg_weight" carry gradient to x and `token_weight`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    return shared.merge_tokens(token_dict, idx_cluster, cluster_num, token_weight, backend) | {
        "mask": None
    }
