"""Drop-in for the public code of SeTok (ICLR 2025; `SetokTokenizer.cluster_dpc_knn`)."""

from torch import Tensor

from setok_kernels import checks
from setok_kernels.config import check_count
from setok_kernels.functional import dpc_knn


def cluster_dpc_knn(
    x: Tensor,
    k: int,
    token_mask: Tensor | None = None,
    threshold: float = 0.53,
    *,
    min_cluster_num: int = 64,
    noise: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster the tokens of one image by density peaks above a score.

    As in the original, `cap="eccentricity"` of `dpc_knn` bounds the seed distance. Intended
    differences:

    - The result is deterministic. The original adds `1e-6 * torch.rand(N)` to the density in every
      call, and five calls find five numbers of clusters. Pass that tensor as `noise` to reproduce
      its result.
    - A token outside `token_mask` has no influence.
    - Fewer tokens than `k` or `min_cluster_num` are not an error.

    Waits for the device, because the number of clusters is data; `dpc_knn` does not.

    Args:
        x: tokens, (N, C); float64, float32, bfloat16 or float16 (clustered by sums in float32).
        k: number of neighbours in the local density, the token itself included.
        token_mask: (N,) mask, above 0 for valid tokens.
        threshold: score that a centre must exceed.
        min_cluster_num: number of centres if no score exceeds the threshold; in the original an
            attribute of the module.
        noise: (N,) tensor added to the density; None for none.
        backend: name of the backend, see `sk.cluster_tokens`.

    Returns:
        index_down: (M,) int64 centres, ascending.
        idx_cluster: (N,) int64 position in `index_down` of each token's centre; 0 for padding, as
            in the original.
        score: (1, N) seed scores in the dtype of x, 0 for padding.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_count("min_cluster_num", min_cluster_num)
    checks.check_float("x", x)
    if x.dim() != 2:
        raise ValueError(f"x: expected shape (N, C), got {tuple(x.shape)}")
    for name, value in (("token_mask", token_mask), ("noise", noise)):
        if value is not None:
            checks.check_shape(name, value, x.shape[:1])
    out = dpc_knn(
        x[None],
        threshold=threshold,
        k=k,
        token_mask=None if token_mask is None else token_mask[None] > 0,
        noise=None if noise is None else noise[None],
        min_clusters=min_cluster_num,
        order="index",
        cap="eccentricity",
        backend=backend,
    )
    return out.centres[0, : int(out.counts)], out.labels[0].clamp(min=0), out.score.to(x.dtype)
