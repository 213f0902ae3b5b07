"""Entry of the K nearest neighbours, against search libraries."""

from __future__ import annotations

import importlib
import math

import torch

import setok_kernels as sk
from setok_bench import checks, work
from setok_bench.clustering import BMM, backend_implementation
from setok_bench.registry import Case, Entry, Implementation, Unavailable
from setok_bench.timing import Call


def make_ours(case: Case, backend: str) -> Call:
    """Return a call of `cluster_tokens` with one cluster, which returns the neighbours.

    No smaller operation does: this one also computes density, seed distance, score and one mask.
    """
    x, config = case.tokens(), sk.ClusterConfig(k=case.shape.k, max_clusters=1)
    return lambda: sk.cluster_tokens(x, config, backend=backend).decisions.knn


def make_cdist(case: Case) -> Call:
    """Return a call of `torch.cdist` and `topk`."""
    x, k = case.tokens(), case.shape.k

    def call():
        distance = torch.cdist(x, x)  # (B, N, N)
        distance.diagonal(dim1=1, dim2=2).fill_(math.inf)
        return distance.topk(k, largest=False).indices

    return call


def make_faiss(case: Case) -> Call:
    """Return a call of one exhaustive index per image; its first neighbour is the token itself."""
    faiss = _require("faiss", "faiss-cpu", case)
    images, k = case.tokens().numpy(), case.shape.k
    faiss.omp_set_num_threads(torch.get_num_threads())

    def call():
        found = []
        for image in images:
            index = faiss.IndexFlatL2(image.shape[1])
            index.add(image)
            found.append(torch.from_numpy(index.search(image, k + 1)[1][:, 1:]))
        return torch.stack(found)

    return call


def make_scikit_learn(case: Case) -> Call:
    """Return a call of its brute-force search, faster than its trees at this many features."""
    neighbors = _require("sklearn.neighbors", "scikit-learn", case)
    images, k = case.tokens().numpy(), case.shape.k

    def call():
        search = [neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute") for _ in images]
        found = [
            s.fit(i).kneighbors(return_distance=False) for s, i in zip(search, images, strict=True)
        ]
        return torch.stack([torch.from_numpy(f) for f in found])

    return call


def _require(module: str, package: str, case: Case):
    if case.shape.dtype != torch.float32:
        raise Unavailable(f"{package}: expected float32, got {case.shape.dtype}")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(
            f'{package} is not installed; pip install "setok-kernels[peers]"'
        ) from error


NEIGHBOURS = Entry(
    "neighbours",
    work.neighbours,
    (
        backend_implementation("cpp", make_ours, checks.check_neighbours),
        backend_implementation("triton", make_ours, checks.check_neighbours),
        Implementation("cdist_topk", make_cdist, checks.check_neighbours),
        Implementation("faiss", make_faiss, checks.check_neighbours, devices=("cpu",)),
        Implementation(
            "scikit_learn", make_scikit_learn, checks.check_neighbours, devices=("cpu",)
        ),
        BMM,
    ),
    yardstick="bmm",
)
