"""Reference backend: plain PyTorch on any device, written to be read next to the paper."""

from setok_kernels.reference.cluster import cluster
from setok_kernels.reference.dpc_knn import dpc_knn
from setok_kernels.reference.merge import merge, unmerge
from setok_kernels.reference.threshold_greedy import threshold_greedy

__all__ = ["cluster", "dpc_knn", "merge", "threshold_greedy", "unmerge"]
