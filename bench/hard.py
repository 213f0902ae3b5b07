"""Entries of the hard clusterings, against the functions of other projects."""

from __future__ import annotations

import torch
from torch import Tensor

import setok_kernels as sk
from setok_bench import checks, work
from setok_bench.clustering import BMM, backend_implementations
from setok_bench.peers import PAIRS, PEERS, PeerCase, find_peer, load_functions
from setok_bench.registry import Case, Entry, Implementation, Unavailable
from setok_bench.timing import Call
from setok_kernels.testing.intervals import squared_distance_bounds

THRESHOLD = 0.5
# Lloyd's iterations of k-means, which has no exact end.
KMEANS_ITERATIONS = 10


def peer_implementation(name: str) -> Implementation:
    """Return the function of another project, from the clone in `peer_root`.

    Its check compares it with our drop-in: in float64, with the same noise, both must be equal.
    """
    make_pair, drop_in, max_images, _ = PAIRS[name]

    def parts(case: Case) -> list[PeerCase]:
        x, s = case.groups(), case.shape
        # SeTok's code takes one image.
        images = x.split(1) if max_images == 1 else [x]
        return [PeerCase(part, s.k, s.clusters, THRESHOLD, None, 0) for part in images]

    def functions(case: Case, double: bool) -> dict:
        if case.peer_root is None:
            raise Unavailable(
                f"--peer-root DIR: expected a folder with a clone of {PEERS[name].repository}"
            )
        try:
            return load_functions(name, find_peer(case.peer_root, name), double)
        except OSError as error:
            raise Unavailable(f"--peer-root: {error}") from error

    def make(case: Case) -> Call:
        peer, _ = make_pair(functions(case, double=False), drop_in)
        cases, dtype = parts(case), case.shape.dtype
        return lambda: [peer(part, dtype) for part in cases]

    def check(case: Case, result) -> None:
        peer, ours = make_pair(functions(case, double=True), drop_in)
        part = parts(case)[0]
        pairs = zip(peer(part, torch.float64), ours(part, torch.float64), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), f"{name}: differs from our drop-in"

    return Implementation(name, make, check, "peer")


def make_dpc_knn(case: Case, backend: str) -> Call:
    """Return a call of `dpc_knn` with `clusters` centres."""
    x, s = case.groups(), case.shape
    return lambda: sk.dpc_knn(x, s.clusters, k=s.k, backend=backend)


def make_threshold_greedy(case: Case, backend: str) -> Call:
    """Return a call of `threshold_greedy` at the threshold of the original."""
    x = case.groups()
    return lambda: sk.threshold_greedy(x, THRESHOLD, backend=backend)


def setok_options(case: Case) -> dict:
    """Return the options with which `compat.setok.cluster_dpc_knn` calls `dpc_knn`."""
    options = dict(threshold=THRESHOLD, min_clusters=64, order="index", cap="eccentricity")
    return options | dict(k=case.shape.k)


def make_setok(case: Case, backend: str) -> Call:
    """Return a call equal to the drop-in for SeTok's code, for a whole batch at once."""
    x, options = case.groups(), setok_options(case)
    return lambda: sk.dpc_knn(x, **options, backend=backend)


def check_setok(case: Case, out: sk.DensityPeaks) -> None:
    """Check the result of `make_setok`."""
    x, options = case.groups(), setok_options(case)
    for b in checks.judged(case):
        sk.testing.assert_valid_density_peaks(x[b : b + 1], checks.one_image(out, b), **options)


def make_kmeans(case: Case) -> Call:
    """Return a call of flash-kmeans with `clusters` means, initialised by the first tokens."""
    run = _kmeans(case)
    return lambda: run(KMEANS_ITERATIONS)


def check_kmeans(case: Case, result) -> None:
    """Check that after one iteration every token has the nearest initial mean."""
    x, s = case.groups(), case.shape
    labels: Tensor = _kmeans(case)(1)[0]
    for b in checks.judged(case):
        features = x[b].double()
        distance = squared_distance_bounds(features, 2.0**-24, torch.finfo(s.dtype).eps)
        own = distance.lo.gather(1, labels[b].long()[:, None])[:, 0]
        nearest = distance.hi[:, : s.clusters].amin(1)
        assert (own <= nearest).all(), "labels: not the nearest mean"


def _kmeans(case: Case):
    try:
        from flash_kmeans import batch_kmeans_Euclid
    except ImportError as error:
        raise Unavailable("flash-kmeans is not installed; pip install flash-kmeans") from error
    x, clusters = case.groups(), case.shape.clusters
    first = x[:, :clusters].clone()

    def run(iterations: int):
        # A negative tolerance runs every iteration.
        return batch_kmeans_Euclid(
            x, clusters, max_iters=iterations, tol=-1.0, init_centroids=first.clone()
        )

    return run


DPC_KNN = Entry(
    "dpc_knn",
    work.dpc_knn,
    (
        *backend_implementations(make_dpc_knn, checks.check_peaks),
        peer_implementation("tcformer"),
        peer_implementation("chatunivi"),
        Implementation("flash_kmeans", make_kmeans, check_kmeans, devices=("cuda",)),
        BMM,
    ),
    yardstick="bmm",
)
DPC_KNN_THRESHOLD = Entry(
    "dpc_knn_threshold",
    work.dpc_knn,
    (*backend_implementations(make_setok, check_setok), peer_implementation("setok"), BMM),
    yardstick="bmm",
)
THRESHOLD_GREEDY = Entry(
    "threshold_greedy",
    work.threshold_greedy,
    (
        *backend_implementations(make_threshold_greedy, checks.check_greedy(THRESHOLD)),
        peer_implementation("divt"),
        BMM,
    ),
    yardstick="bmm",
)
