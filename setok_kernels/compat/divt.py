"""DiVT (CVPR 2026; `DiVT.clustering` of `llava/model/multimodal_projector/builder.py`)."""

import torch
from torch import Tensor

from setok_kernels import checks
from setok_kernels.functional import threshold_greedy as cluster


def threshold_greedy(
    query: Tensor, features: Tensor, threshold: float, *, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster tokens by cosine similarity and take one query token per cluster.

    Different from the original on purpose:

    - It ends for every input. The original loops for ever on a zero vector with a threshold of 0 or
      more, and on every input with one of 1 or more; here a token is always its own neighbour. The
      similarity of a zero vector to any other token is 0.
    - A token with a non-finite feature is attended to by nobody.

    Waits for the device once: the number of queries is data. `sk.threshold_greedy` does not.

    Args:
        query: (B, N, D) features from which the queries are taken.
        features: (B, N, F) features that are clustered; float64, float32, bfloat16 or float16.
        threshold: of the cosine similarity.
        backend: as in `sk.cluster_tokens`.

    Returns:
        query_tokens: (B, Q, D) those of the centres, ascending by token; Q is the most of an image,
            and behind an image's last stands its token 0. Carries gradient to `query`.
        num_queries: (B,) int64.
        attn_mask: (B, Q, N) bool, False where a query attends: at the tokens of its cluster, and
            everywhere behind an image's last query.

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
    most = int(out.counts.max()) if out.counts.numel() else 0
    centres = out.centres[:, :most]
    index = centres.clamp(min=0)[:, :, None].expand(-1, -1, query.shape[2])
    row = torch.arange(most, device=features.device)[:, None]
    attn_mask = (out.labels[:, None] != row) & (centres >= 0)[:, :, None]
    return query.gather(1, index), out.counts, attn_mask
