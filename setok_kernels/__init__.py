"""Dynamic token clustering (Algorithm 1 of SeTok, ICLR 2025) as one exact, batched operation."""

from setok_kernels import testing
from setok_kernels.config import ClusterConfig
from setok_kernels.dispatch import backends
from setok_kernels.functional import cluster_tokens, merge_tokens, unmerge_tokens
from setok_kernels.modules import TokenClustering
from setok_kernels.result import Clusters, Decisions

__version__ = "0.1.0"

__all__ = [
    "ClusterConfig",
    "Clusters",
    "Decisions",
    "TokenClustering",
    "__version__",
    "backends",
    "cluster_tokens",
    "merge_tokens",
    "testing",
    "unmerge_tokens",
]
