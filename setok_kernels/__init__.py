"""Dynamic token clustering (Algorithm 1 of SeTok, ICLR 2025) as one exact, batched operation."""

from setok_kernels import compat, testing
from setok_kernels.config import ClusterConfig
from setok_kernels.dispatch import backends
from setok_kernels.functional import (
    cluster_tokens,
    dpc_knn,
    merge_tokens,
    threshold_greedy,
    unmerge_tokens,
)
from setok_kernels.modules import TokenClustering
from setok_kernels.packing import Packed
from setok_kernels.result import Clusters, Decisions, DensityPeaks, HardClusters

__version__ = "0.1.0"

__all__ = [
    "ClusterConfig",
    "Clusters",
    "Decisions",
    "DensityPeaks",
    "HardClusters",
    "Packed",
    "TokenClustering",
    "__version__",
    "backends",
    "cluster_tokens",
    "compat",
    "dpc_knn",
    "merge_tokens",
    "testing",
    "threshold_greedy",
    "unmerge_tokens",
]
