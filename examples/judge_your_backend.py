"""Judge two clusterings of one's own by setok_kernels.testing: a right one, and one in 16 bits."""

import argparse

import torch

import setok_kernels as sk
from setok_kernels import testing


def cluster(x: torch.Tensor, k: int, count: int, dtype: torch.dtype) -> sk.DensityPeaks:
    """Return density-peak clusters of tokens (B, N, D), from distances in `dtype`."""
    near = x.to(dtype)
    square = near.square().sum(-1)
    squared = square[:, :, None] + square[:, None] - 2 * near @ near.mT  # (B, N, N)
    squared = (squared.float() / x.shape[2]).clamp(min=0)
    squared.diagonal(dim1=1, dim2=2).zero_()

    nearest, knn = squared.sort(dim=2, stable=True)
    density = (-nearest[:, :, :k].mean(2)).exp()  # (B, N)
    token = torch.arange(x.shape[1])
    higher = density[:, None] > density[:, :, None]  # (B, N, N): column before row
    higher |= (density[:, None] == density[:, :, None]) & (token < token[:, None])
    to_higher, parent = squared.masked_fill(~higher, torch.inf).min(2)
    top = ~higher.any(2)
    delta = to_higher.masked_fill(top, torch.inf).minimum(squared.amax((1, 2))[:, None]).sqrt()
    score = density * delta

    centres = score.sort(dim=1, descending=True, stable=True).indices[:, :count]  # (B, C)
    to_centres = squared.gather(1, centres[:, :, None].expand(-1, -1, x.shape[1]))
    return sk.DensityPeaks(
        labels=to_centres.argmin(1),
        centres=centres,
        counts=torch.full((x.shape[0],), count),
        density=density,
        delta=delta,
        score=score,
        knn=knn[:, :, :k],
        parent=parent.masked_fill(top, -1),
    )


def main() -> None:
    """Ask the judge about both, on tokens with the massive channels of vision transformers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an image")
    x = testing.vit_like_tokens(2, parser.parse_args().tokens, 64)
    for dtype in (torch.float32, torch.bfloat16):
        try:
            testing.assert_valid_density_peaks(x, cluster(x, 5, 8, dtype), k=5, num_clusters=8)
            print(f"{dtype}: every decision is optimal, and the values are right")
        except AssertionError as wrong:
            print(f"{dtype}: {wrong}")


if __name__ == "__main__":
    main()
