"""Entry of the search for the K nearest tokens, against libraries made for it."""

from __future__ import annotations

import importlib
import math

import torch

import setok_kernels as sk
from setok_bench import checks, work
from setok_bench.clustering import BMM, backend_contender
from setok_bench.registry import Case, Contender, Entry, Unavailable
from setok_bench.timing import Call


def make_ours(case: Case, backend: str) -> Call:
    """Of one cluster: there is no smaller operation that returns the neighbours.

    It makes density, seed distance, score and one mask too.
    """
    x, config = case.tokens(), sk.ClusterConfig(k=case.shape.k, max_clusters=1)
    return lambda: sk.cluster_tokens(x, config, backend=backend).decisions.knn


def make_cdist(case: Case) -> Call:
    """`torch.cdist` and `topk`."""
    x, k = case.tokens(), case.shape.k

    def call():
        distance = torch.cdist(x, x)  # (B, N, N)
        distance.diagonal(dim1=1, dim2=2).fill_(math.inf)
        return distance.topk(k, largest=False).indices

    return call


def make_faiss(case: Case) -> Call:
    """An exhaustive index per image; the first neighbour it finds is the token itself."""
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
    """Brute force, which its trees do not beat at these numbers of features."""
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
        raise Unavailable(f"{package} takes float32, got {case.shape.dtype}")
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
        backend_contender("cpp", make_ours, checks.check_neighbours),
        backend_contender("triton", make_ours, checks.check_neighbours),
        Contender("cdist_topk", make_cdist, checks.check_neighbours),
        Contender("faiss", make_faiss, checks.check_neighbours, devices=("cpu",)),
        Contender("scikit_learn", make_scikit_learn, checks.check_neighbours, devices=("cpu",)),
        BMM,
    ),
    yardstick="bmm",
)
