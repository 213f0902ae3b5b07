"""Launcher of csrc/cuda/scope.cu, the kernel in place of `image_fwd_kernel` (`SETOK_CUDA=1`)."""

import ctypes

import triton
from torch import Tensor

from setok_kernels import _cuda_kernels
from setok_kernels.config import KERNELS
from setok_triton.chunk import Chunk
from setok_triton.common import Clusters
from setok_triton.configs import host_pitch
from setok_triton.scope import MaskLayout

_LANES = 32
# Maximum number of tokens of an image, by the tokens of a thread; the kernels' names end with them.
_SIZES = {1: 256, 2: 1024, 4: 2048}
# Tensors of the argument, in the order of csrc/cuda/scope.h.
_TENSORS = (
    *("offsets", "ok", "sigma", "num_ok", "distance", "valid", "importance", "budget", "learnable"),
    *("knn", "density", "parent", "seeds", "counts", "masks", "delta", "score", "labels"),
)
_STRIDES = ("stride_image", "stride_row", "stride_start", "stride_seeds")
_OPTIONS = ("kernel", "sigmoid", "distinct", "exact", "normalise", "replay")


class Arguments(ctypes.Structure):
    """Argument of the kernels, `Arguments` of csrc/cuda/scope.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _TENSORS),
        *((name, ctypes.c_int64) for name in _STRIDES),
        *((name, ctypes.c_int32) for name in ("k", "max_clusters", "longest", "pitch")),
        *((name, ctypes.c_float) for name in ("stop_residual", "min_mass")),
        *((name, ctypes.c_int32) for name in _OPTIONS),
    ]


def cluster_images(
    chunk: Chunk,
    valid: Tensor | None,
    importance: Tensor | None,
    budget: Tensor | None,
    options,
    loop,
    out: Clusters,
    replay: bool,
) -> None:
    """Write parents, delta, score, masks and labels of a chunk with distance rows.

    The arguments are those of `image.cluster_images`, with the outputs in a bundle.

    Raises:
        RuntimeError: the kernels are missing, or the driver refuses them.
    """
    per_thread = next(tokens for tokens, most in _SIZES.items() if chunk.longest <= most)
    warps = triton.cdiv(chunk.longest, _LANES * per_thread)
    strides = (*MaskLayout.of(out.p_masks), out.p_seeds.stride(0))
    values = dict(
        offsets=chunk.offsets,
        ok=chunk.ok,
        sigma=chunk.sigma,
        num_ok=chunk.num_ok,
        distance=chunk.distances,
        valid=valid,
        importance=None if importance is None else importance.float(),
        budget=budget,
        learnable=options.learnable,
        knn=out.p_knn,
        density=out.p_density,
        parent=out.p_parent,
        seeds=out.p_seeds,
        counts=out.p_counts,
        masks=out.p_masks,
        delta=out.p_delta,
        score=out.p_score,
        labels=out.p_labels,
        **dict(zip(_STRIDES, strides, strict=True)),
        k=out.p_knn.shape[1],
        max_clusters=loop.max_clusters,
        longest=chunk.longest,
        pitch=host_pitch(chunk.longest),
        stop_residual=loop.stop_residual,
        min_mass=loop.min_mass,
        kernel=KERNELS.index(options.kernel),
        sigmoid=options.alpha == "sigmoid",
        distinct=loop.distinct_seeds,
        exact=loop.exact,
        normalise=options.score_norm_max,
        replay=replay,
    )
    _cuda_kernels.launch(
        *(f"scope_fwd_kernel_{per_thread}", chunk.images, warps * _LANES),
        *(Arguments, values, chunk.offsets.device),
    )
