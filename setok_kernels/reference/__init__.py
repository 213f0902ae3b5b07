"""The reference backend: plain PyTorch on any device, written to be read next to the paper."""

from setok_kernels.reference.cluster import cluster
from setok_kernels.reference.merge import merge, unmerge

__all__ = ["cluster", "merge", "unmerge"]
