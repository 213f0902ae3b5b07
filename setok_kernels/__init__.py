"""Dynamic token clustering (SeTok, ICLR 2025, Algorithm 1) as one exact, batched operation."""

from typing import TYPE_CHECKING

from setok_kernels import _triton_package, compat
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

if TYPE_CHECKING:
    from setok_kernels import testing

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

# Must run before torch imports triton, which happens in the first compilation.
_triton_package.hide_folder()


# A type checker would take any name for one of ours.
if not TYPE_CHECKING:

    def __getattr__(name: str):
        # Who tests a backend loads what judges it.
        if name == "testing":
            import importlib

            return importlib.import_module(".testing", __package__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
