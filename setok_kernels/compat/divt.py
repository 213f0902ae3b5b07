"""Drop-in for DiVT (CVPR 2026; `llava/model/multimodal_projector/builder.py::DiVT.clustering`)."""

import torch
from torch import Tensor

from setok_kernels import checks
from setok_kernels.functional import threshold_greedy as cluster


def threshold_greedy(
    query: Tensor, features: Tensor, threshold: float, *, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster tokens by cosine similarity and take one query token per cluster.

    Intended differences from the original:

    - It terminates for every input. The original loops forever on a zero vector with a threshold of
      0 or more, and on every input with a threshold of 1 or more. Here a token is always its own
      neighbour, and a zero vector has similarity 0 to any other token.
    - No query attends to a token with a non-finite feature.

    Waits for the device once, because the number of queries is data; `sk.threshold_greedy` does
    not.

    Args:
        query: (B, N, D) features from which the queries are taken.
        features: (B, N, F) features to cluster; float64, float32, bfloat16 or float16.
        threshold: threshold of the cosine similarity.
        backend: name of the backend, see `sk.cluster_tokens`.

    Returns:
        query_tokens: (B, Q, D) query tokens of the centres, ascending by token. Q is the maximum
            over the images; token 0 of the image fills the rest. Carries gradient to `query`.
        num_queries: (B,) int64 number of queries of each image.
        attn_mask: (B, Q, N) bool, False where a query attends: at the tokens of its cluster, and
            everywhere after an image's last query.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    checks.check_float("features", features)
    checks.check_tensor("query", query)
    if features.dim() != 3:
        raise ValueError(f"features: expected shape (B, N, F), got {tuple(features.shape)}")
    if query.dim() != 3 or query.shape[:2] != features.shape[:2]:
        expected = f"({features.shape[0]}, {features.shape[1]}, D)"
        raise ValueError(f"query: expected shape {expected}, got {tuple(query.shape)}")
    checks.check_device("query", query, features.device)
    out = cluster(features, threshold, backend=backend)
    max_count = int(out.counts.max()) if out.counts.numel() else 0
    centres = out.centres[:, :max_count]
    index = centres.clamp(min=0)[:, :, None].expand(-1, -1, query.shape[2])
    row = torch.arange(max_count, device=features.device)[:, None]
    attn_mask = (out.labels[:, None] != row) & (centres >= 0)[:, :, None]
    return query.gather(1, index), out.counts, attn_mask
