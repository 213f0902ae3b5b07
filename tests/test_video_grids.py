"""Grids with a time axis, (B, T, H, W, D), in every function that takes or returns tokens."""

import dataclasses

import pytest
import torch

import setok_kernels as sk
from helpers.pairwise import pairwise
from setok_kernels import testing

METHODS = {
    "cluster": lambda x, **options: sk.cluster_tokens(
        x, sk.ClusterConfig(k=3, max_clusters=5), **options
    ),
    "dpc_knn": lambda x, **options: sk.dpc_knn(x, 4, k=3, **options),
    "threshold_greedy": lambda x, **options: sk.threshold_greedy(x, 0.43, **options),
}
# One frame, one line, one column, one patch, odd sides, no frame, no patch in a frame.
GRIDS = [(1, 3, 5), (3, 1, 4), (4, 3, 1), (1, 1, 1), (3, 2, 3), (0, 2, 2), (2, 0, 3)]
TOKENS = {
    "planted": lambda number: testing.planted_clusters(2, number, 3, 4, noise=0.2)[0],
    "ties": lambda number: testing.duplicate_tokens(2, number, 3, distinct=3, dtype=torch.float32),
}
PER_ROW = ("images", "rows", "sizes", "seeds")


def mask_of(grid, kind):
    """No mask, one of some tokens, or one that leaves the second video empty."""
    if kind == "none":
        return {}
    mask = torch.rand(2, *grid, generator=torch.Generator().manual_seed(1)) < 0.7
    if kind == "empty":
        mask[1] = False
    return dict(token_mask=mask)


def assert_same_tensors(one, two, names):
    for name in names:
        assert torch.equal(getattr(one, name), getattr(two, name)), name


@pytest.mark.parametrize(
    "method, grid, kind, mask",
    pairwise(method=METHODS, grid=GRIDS, kind=TOKENS, mask=("none", "some", "empty")),
)
def test_a_video_is_its_tokens_in_raster_order(method, grid, kind, mask, backend):
    """The grid is layout alone: what is computed is that of (B, N, D), bit for bit."""
    method, flat = METHODS[method], TOKENS[kind](grid[0] * grid[1] * grid[2])
    x, options = flat.unflatten(1, grid), mask_of(grid, mask)
    out = method(x, **options, backend=backend)
    plain = method(flat, **{n: m.flatten(1) for n, m in options.items()}, backend=backend)
    assert out.grid == grid and plain.grid is None
    names = [f.name for f in dataclasses.fields(out) if f.name not in ("decisions", "grid")]
    assert_same_tensors(out, plain, [n for n in names if getattr(out, n) is not None])

    weights = torch.rand(2, *grid, generator=torch.Generator().manual_seed(2))
    merged = sk.merge_tokens(x, out, weights=weights, backend=backend)
    expected = sk.merge_tokens(flat, plain, weights=weights.flatten(1), backend=backend)
    assert torch.equal(merged, expected)
    assert torch.equal(
        sk.merge_tokens(flat, out, weights=weights.flatten(1), backend=backend), merged
    )
    spread = sk.unmerge_tokens(merged, out, backend=backend)
    assert spread.shape == x.shape
    assert torch.equal(spread.flatten(1, 3), sk.unmerge_tokens(merged, plain, backend=backend))


@pytest.mark.backends("reference", "cpp")
@pytest.mark.parametrize(
    "method, sides, kind, mask, order",
    pairwise(
        method=METHODS,
        sides=[(3, 5), (1, 4), (4, 1), (1, 1), (0, 3)],
        kind=TOKENS,
        mask=("none", "some", "empty"),
        order=("seed", "raster", "size"),
    ),
)
def test_a_video_of_one_frame_is_an_image(method, sides, kind, mask, order, backend):
    method, flat = METHODS[method], TOKENS[kind](sides[0] * sides[1])
    options = mask_of(sides, mask)
    image = method(flat.unflatten(1, sides), **options, backend=backend)
    options = {name: value.unsqueeze(1) for name, value in options.items()}
    video = method(flat.unflatten(1, (1, *sides)), **options, backend=backend)
    one, two = (o.pack(sk.merge_tokens(flat, o), False, order) for o in (image, video))
    assert_same_tensors(one, two, ("tokens", "cu_seqlens", *PER_ROW))
    for name in ("seed_positions", "centroids"):
        a, b = getattr(one, name), getattr(two, name)
        assert torch.equal(a, b[:, 1:])
        # Except for a residual without members, which is nowhere.
        assert torch.equal(b[:, 0], torch.where((a < 0).all(1), -1.0, 0.0))


@pytest.mark.backends("reference", "cpp")
@pytest.mark.parametrize("order", ["seed", "raster", "size"])
@pytest.mark.parametrize("method", METHODS)
def test_videos_and_images_of_any_size_together(method, order, backend):
    """Packed videos have the positions that each has alone; an image is a video of one frame."""
    grids = [(2, 3, 3), (0, 0, 0), (1, 4, 2), (3, 1, 1), (2, 2, 5)]
    lengths = [t * h * w for t, h, w in grids]
    x, cu_seqlens, _, _ = testing.ragged_batch(lengths, 3, exact=True)
    method = METHODS[method]
    out = method(x, cu_seqlens=cu_seqlens, backend=backend)
    packed = out.pack(sk.merge_tokens(x, out), order=order, grids=torch.tensor(grids))
    assert packed.centroids.shape[1] == 3 and (packed.centroids[:, 0] > 0).any()
    for i, (grid, tokens) in enumerate(zip(grids, x.split(lengths), strict=True)):
        video = tokens.reshape(1, *grid, 3)
        own = method(video, backend=backend)
        alone = own.pack(sk.merge_tokens(video, own), order=order)
        assert_same_tensors(
            alone, packed.image(i), ("cu_seqlens", *PER_ROW, "seed_positions", "centroids")
        )


def test_raster_order_goes_by_frame_then_line_then_column():
    # Rows 0 and 1 have t = 0.5, which counts as frame 0 (halves to even).
    labels = torch.full((2, 2, 3), -1)
    labels[0, 1, 0] = labels[1, 1, 0] = 0
    labels[0, 0, 2] = labels[1, 0, 2] = 1
    labels[1, 0, 0] = 2
    labels[0, 1, 1] = 3
    out = sk.HardClusters(
        labels=labels.view(1, 12),
        centres=torch.tensor([[9, 8, 6, 4]]),
        counts=torch.tensor([4]),
        grid=(2, 2, 3),
    )
    packed = out.pack(torch.zeros(1, 4, 1), order="raster")
    assert packed.rows.tolist() == [1, 0, 3, 2]
    assert packed.centroids.tolist() == [[0.5, 0, 2], [0.5, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert packed.seed_positions.tolist() == [[1, 0, 2], [1, 1, 0], [0, 1, 1], [1, 0, 0]]
    # Other sides of the same tokens are other places; two sides leave the time out.
    flat = out.pack(torch.zeros(1, 4, 1), order="raster", grids=[(2, 6)])
    assert flat.seed_positions.tolist() == [[1, 2], [1, 3], [0, 4], [1, 0]]
    tall = out.pack(torch.zeros(1, 4, 1), grids=[(3, 2, 2)])
    assert tall.seed_positions.tolist() == [[2, 0, 1], [2, 0, 0], [1, 1, 0], [1, 0, 0]]


def test_noise_and_gradient_of_a_video(backend):
    x = testing.planted_clusters(2, 12, 3, 3)[0].unflatten(1, (3, 2, 2))
    noise = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    out = sk.dpc_knn(x, 4, noise=noise, backend=backend)
    plain = sk.dpc_knn(x.flatten(1, 3), 4, noise=noise.flatten(1), backend=backend)
    assert torch.equal(out.density, plain.density) and out.grid == (3, 2, 2)
    x.requires_grad_()
    out = sk.cluster_tokens(x, sk.ClusterConfig(k=3, max_clusters=4), backend=backend)
    merged = sk.merge_tokens(x, out, "soft", backend=backend)
    spread = sk.unmerge_tokens(merged, out, "soft", backend=backend)
    spread.square().sum().backward()
    assert x.grad.shape == x.shape and x.grad.abs().max() > 0


X = torch.arange(48.0).reshape(2, 2, 2, 2, 3)


@pytest.mark.parametrize(
    "call, match",
    [
        (
            lambda: sk.cluster_tokens(X, token_mask=torch.ones(2, 2, 4).bool()),
            r"token_mask: expected shape \(2, 8\), got \(2, 2, 4\)",
        ),
        (
            lambda: sk.dpc_knn(X, 2, noise=torch.zeros(2, 8)),
            r"noise: expected shape \(2, 2, 2, 2\), got \(2, 8\)",
        ),
        (
            lambda: sk.merge_tokens(X[:, :1], sk.dpc_knn(X, 2)),
            r"x: expected shape \(2, 2, 2, 2, 3\), got \(2, 1, 2, 2, 3\)",
        ),
        (
            lambda: sk.merge_tokens(X[:, 0], sk.dpc_knn(X, 2)),
            r"x: expected shape \(2, 8, 3\), got \(2, 2, 2, 3\)",
        ),
        (
            lambda: sk.merge_tokens(X, sk.dpc_knn(X, 2), weights=torch.ones(2, 4, 2)),
            r"weights: expected shape \(2, 2, 2, 2\), got \(2, 4, 2\)",
        ),
        (
            lambda: sk.merge_tokens(X, dataclasses.replace(sk.dpc_knn(X, 2), grid=(2, 2, 3))),
            r"grid: expected None, \(H, W\) or \(T, H, W\) of 8 tokens, got \(2, 2, 3\)",
        ),
        (
            lambda: sk.merge_tokens(X, dataclasses.replace(sk.dpc_knn(X, 2), grid=(2, 2, 2, 1))),
            r"grid: expected None, \(H, W\) or \(T, H, W\) of 8 tokens, got \(2, 2, 2, 1\)",
        ),
    ],
)
def test_what_does_not_fit_a_video(call, match):
    with pytest.raises(ValueError, match=f"^{match}$"):
        call()
