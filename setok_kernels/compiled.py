"""Adapters that give the compiled backends the same functions as the reference."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from setok_kernels.config import (
    ALPHAS,
    KERNELS,
    LEARNABLE,
    NAMESPACE,
    SCALES,
    ClusterConfig,
    DPCOptions,
)
from setok_kernels.ops import wide_dtype
from setok_kernels.records import check_members
from setok_kernels.result import Clusters, Decisions, DensityPeaks, HardClusters, masks_of

# Max tokens of an image whose distance rows are kept; longer images compute the products twice.
DENSE_LIMITS = {"cpp": 3072, "triton": 2048}


@dataclass(frozen=True)
class Compiled:
    """A compiled backend.

    Attributes:
        backend: name of the backend, "cpp" or "triton".
        namespace: namespace of its operations.
    """

    backend: str
    namespace: str = NAMESPACE

    def cluster(
        self,
        x: Tensor,
        valid: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        config: ClusterConfig,
        decisions: Decisions | None,
        importance: Tensor | None = None,
        budget: Tensor | None = None,
        exact: bool = False,
    ) -> Clusters:
        """Cluster padded or packed tokens; the arguments are those of `reference.cluster`."""
        known: list[Tensor | None] = [None] * 4
        if decisions is not None:
            known = [decisions.knn, decisions.parent, decisions.seeds, decisions.counts]
        masks, labels, density, delta, score, *made, _ = self._ops.cluster(
            x.contiguous(),
            _contiguous(valid),
            None if importance is None else importance.to(wide_dtype(x)).contiguous(),
            _contiguous(budget),
            _contiguous(cu_seqlens),
            x.shape[1] if cu_seqlens is None else max_seqlen,
            *map(_contiguous, known),
            *mask_options(config, x),
            config.k,
            config.max_clusters,
            config.distinct_seeds,
            config.include_self,
            exact,
            float(config.stop_residual),
            float(config.min_mass),
            DENSE_LIMITS[self.backend],
        )
        decisions = Decisions(*made) if decisions is None else decisions
        return Clusters(masks, decisions.counts, labels, density, delta, score, decisions)

    def merge(
        self,
        x: Tensor,
        out: Clusters | HardClusters,
        mode: str,
        weights: Tensor | None,
        eps: float,
    ) -> Tensor:
        """Merge tokens into clusters; the arguments are those of `reference.merge`."""
        assignment, dtype = self._assignment(out, mode), x.dtype
        wide = masks_of(out).dtype if mode == "soft" else wide_dtype(x)
        if weights is not None:
            weights = weights.to(wide).contiguous()
        self._check(out, weights)
        merged = self._ops.merge(
            self._accumulated(x, wide),
            *assignment[:3],
            weights,
            *assignment[3:],
            out.num_rows,
            eps,
        )
        return merged.to(dtype)

    def unmerge(self, tokens: Tensor, out: Clusters | HardClusters, mode: str) -> Tensor:
        """Spread clusters back to tokens; the arguments are those of `reference.unmerge`."""
        wide = masks_of(out).dtype if mode == "soft" else wide_dtype(tokens)
        self._check(out)
        spread = self._ops.unmerge(self._accumulated(tokens, wide), *self._assignment(out, mode))
        return spread.to(tokens.dtype)

    def dpc_knn(
        self,
        x: Tensor,
        valid: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        noise: Tensor | None,
        options: DPCOptions,
        importance: Tensor | None = None,
        budget: Tensor | None = None,
    ) -> DensityPeaks:
        """Cluster hard in one shot; the arguments are those of `reference.dpc_knn`."""
        longest = x.shape[1] if cu_seqlens is None else max_seqlen
        labels, centres, counts, density, delta, score, knn, parent = self._ops.dpc_knn(
            x.detach().contiguous(),
            _contiguous(valid),
            _contiguous(cu_seqlens),
            longest,
            *(
                None if given is None else given.detach().to(wide_dtype(x)).contiguous()
                for given in (noise, importance)
            ),
            _contiguous(budget),
            options.k,
            longest if options.num_clusters is None else options.num_clusters,
            -math.inf if options.threshold is None else float(options.threshold),
            options.min_clusters,
            options.order == "index",
            options.cap == "eccentricity",
            DENSE_LIMITS[self.backend],
        )
        return DensityPeaks(
            labels=labels,
            centres=centres,
            counts=counts,
            density=density,
            delta=delta,
            score=score,
            knn=knn,
            parent=parent,
        )

    def threshold_greedy(
        self,
        x: Tensor,
        valid: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        threshold: float,
    ) -> HardClusters:
        """Cluster greedily; the arguments are those of `reference.threshold_greedy`."""
        labels, centres, counts = self._ops.threshold_greedy(
            x.detach().contiguous(),
            _contiguous(valid),
            _contiguous(cu_seqlens),
            x.shape[1] if cu_seqlens is None else max_seqlen,
            float(threshold),
        )
        return HardClusters(labels=labels, centres=centres, counts=counts)

    @property
    def _ops(self):
        return getattr(torch.ops, self.namespace)

    def _check(self, out: Clusters | HardClusters, weights: Tensor | None = None) -> None:
        # The C++ kernels check the values themselves; Triton's would have to wait for the device.
        if self.backend != "cpp":
            check_members(out, weights)

    def _accumulated(self, x: Tensor, wide: torch.dtype) -> Tensor:
        # The C++ kernels multiply in one dtype; the Triton kernels read 16-bit tokens directly.
        return (x.to(wide) if self.backend == "cpp" else x).contiguous()

    def _assignment(self, out: Clusters | HardClusters, mode: str) -> tuple:
        """Return masks (None when hard), labels, counts, cu_seqlens and max_seqlen."""
        packed = out.cu_seqlens is not None
        return (
            masks_of(out).contiguous() if mode == "soft" else None,
            out.labels.contiguous(),
            out.counts.contiguous(),
            _contiguous(out.cu_seqlens),
            out.max_seqlen if packed else out.labels.shape[1],
        )


def mask_options(config: ClusterConfig, x: Tensor) -> tuple:
    """Return the arguments `learnable` to `score_norm_max` of `setok::cluster` and its backward."""
    learnable = [getattr(config, name) for name in LEARNABLE]
    tensors, numbers = None, learnable
    if any(isinstance(v, Tensor) for v in learnable):
        tensors = torch.stack([_on_device(v, x.device, wide_dtype(x)) for v in learnable])
        numbers = [0.0] * len(LEARNABLE)
    scale = config.distance_scale
    named = isinstance(scale, str)
    return (
        tensors,
        KERNELS.index(config.kernel),
        ALPHAS.index(config.alpha),
        *(float(v) for v in numbers),
        SCALES.index(scale if named else "number"),
        0.0 if named else float(scale),
        config.score_norm == "max",
    )


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _on_device(value, device: torch.device, dtype: torch.dtype) -> Tensor:
    # A fill: a copy from the host would wait for the device.
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    return torch.full((), value, device=device, dtype=dtype)
