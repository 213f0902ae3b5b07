"""Hard one-shot clustering: kernel of its scores, and launches of all its stages."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from setok_kernels import layout
from setok_kernels.selection import choose_centres
from setok_triton.assign import assign
from setok_triton.chunk import Chunk
from setok_triton.common import COUNTERS, Images, Tokens, flagged, locate, pair_distance
from setok_triton.configs import dense_images, token_config
from setok_triton.delta import parents
from setok_triton.density import density, neighbours
from setok_triton.distances import distances
from setok_triton.features import scales
from setok_triton.importance import weighted_score
from setok_triton.parents import find_parents, settle_parents
from setok_triton.rows import empty_rows
from setok_triton.select import select
from setok_triton.workspace import workspace


@triton.jit(do_not_specialize=COUNTERS)
def peaks_fwd_kernel(
    x,
    images,
    p_density,
    p_parent,
    p_cap,  # (images of the chunk,) float32, or (T,) where CAPPED
    p_importance,  # (T,) weights, or None
    p_delta,  # (T,) float32
    p_score,  # (T,) float32
    L,
    scale,  # scale of the squared distances, 1 / D
    CAPPED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write delta, the distance to the parent but at most the cap, and (rho * delta) * w."""
    at = locate(images.p_offsets, L, tl.cdiv(L, BLOCK_N))
    i_b, i_n, start, n = at
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    factor = tl.load(images.p_factor + i_b)
    m_ok = flagged(images.p_ok, start, o_n, m_n)
    b_parent = tl.load(p_parent + start + o_n, mask=m_n, other=-1)  # (N,)
    m_pair = m_ok & (b_parent >= 0)
    b_parent = tl.where(m_pair, b_parent, 0)
    b_near = pair_distance(x, images, at, o_n, b_parent, m_pair, factor, L, BLOCK_D)
    # (N,) or one number of the image
    b_cap = tl.load(p_cap + start + o_n, mask=m_n, other=0) if CAPPED else tl.load(p_cap + i_b)
    b_near = tl.minimum(tl.where(m_pair, b_near, float("inf")), b_cap)
    # The range is restored after the root, because its square may overflow. An infinite delta at
    # density 0 would make the score NaN.
    b_delta = tl.div_rn(tl.sqrt_rn(scale * b_near), tl.where(factor > 0, factor, 1.0))
    b_delta = tl.where(m_ok, tl.minimum(b_delta, 3.4028234663852886e38), 0.0)
    b_density = tl.load(p_density + start + o_n, mask=m_n, other=0.0)  # (N,)
    tl.store(p_delta + start + o_n, b_delta, mask=m_n)
    b_raw = weighted_score(b_density * b_delta, p_importance, start, o_n, m_n)
    tl.store(p_score + start + o_n, b_raw, mask=m_n)


def peaks(
    x: Tensor,
    chunk: Chunk,
    density: Tensor,
    parent: Tensor,
    cap: Tensor,
    capped: bool,
    importance: Tensor | None,
    delta: Tensor,
    score: Tensor,
) -> None:
    """Write the values of the chunk into `delta` and `score` (T,).

    `cap` bounds the squared distances: (T,) if `capped`, else one value per image of the chunk.
    `importance` (T,) multiplies the score.
    """
    config = token_config(x.dtype)
    blocks = triton.cdiv(chunk.longest, config.block_n)
    peaks_fwd_kernel[(chunk.images * blocks,)](
        *(Tokens.of(x), Images.of(chunk), density, parent, cap, importance, delta, score),
        *(chunk.longest, 1 / x.shape[1]),
        CAPPED=capped,
        **config.launch(),
    )


def dpc_knn(
    x: Tensor,
    valid: Tensor | None,
    cu_seqlens: Tensor | None,
    offsets: Tensor,
    longest: int,
    noise: Tensor | None,
    importance: Tensor | None,
    budget: Tensor | None,
    k: int,
    columns: int,
    threshold: float,
    min_clusters: int,
    by_index: bool,
    capped: bool,
    limit: int,
) -> tuple[Tensor, ...]:
    """Launch the kernels of `setok::dpc_knn`.

    Args:
        x: (T, D) tokens of all images.
        valid: (T,) uint8 flags or None.
        cu_seqlens: (B + 1,) offsets of packed input; None if each image has `longest` tokens.
        offsets: (B + 1,) int64 offsets of the images.
        longest: maximum number of tokens of an image.
        noise: (T,) float32 noise on the density or None.
        importance: (T,) weights of the scores or None.
        budget: (B,) int64 maximum number of centres of each image; None for `columns`.
        k: number of neighbours in the density.
        columns: maximum number of centres of an image.
        threshold: score that a centre must exceed, minus infinity for none.
        min_clusters: number of centres of an image if no score exceeds the threshold.
        by_index: flag: centres by ascending token, not by descending score.
        capped: flag: delta is bounded by the eccentricity, not by the diameter.
        limit: maximum number of tokens of an image with kept distance rows.

    Returns:
        Outputs of the operation, with (T,) in place of (B, N).
    """
    images, total = offsets.shape[0] - 1, x.shape[0]
    rho, dlt, s, far, cap = (x.new_empty(total, dtype=torch.float32) for _ in range(5))
    knn, parent = offsets.new_empty(total, k), offsets.new_empty(total)
    if total == 0:
        centres, counts = offsets.new_full((images, columns), -1), offsets.new_zeros(images)
        return parent.clone(), centres, counts, rho, dlt, s, knn, parent

    def padded(values):
        if cu_seqlens is None:
            return values.view(images, longest)
        return layout.pad(values, offsets, longest)

    scale, size = 1 / x.shape[1], dense_images(images, longest, limit)
    if size:
        whole, rows, norm, _ = workspace(x, offsets, longest, size, farthest=True)
    else:
        ok, *range_and_scale = scales(x, valid, offsets, longest, scale)
        whole = Chunk(ok, offsets, *range_and_scale, longest)
        norm = torch.empty_like(rho)
    for cut, chunk in whole.parts(size):
        if size:
            distances(x, valid, chunk, rows, norm, include_self=True)
            chunk = chunk.keeping(rows.p_distance)
            select(chunk, rows, knn, rho, True, scale, noise, far)
        else:
            full, peaky = empty_rows(chunk, 2)
            neighbours(x, norm, chunk, knn, True, far, full)
            density(x, chunk, knn, rho, noise)
        if size or capped:
            parents(x, norm, chunk, rho, parent, *((far, cap) if capped else ()))
        else:
            best = find_parents(x, norm, chunk, knn, rho, parent, peaky)
            settle_parents(chunk, parent, best)
        bound = cap if capped else padded(far)[cut].amax(1)
        peaks(x, chunk, rho, parent, bound, capped, importance, dlt, s)
    centres, counts = choose_centres(
        padded(s), padded(whole.ok[:total]) != 0, columns, threshold, min_clusters, by_index, budget
    )
    labels = assign(x, Images.of(whole, norm), longest, centres, counts)
    return labels, centres, counts, rho, dlt, s, knn, parent
