"""Train bandwidth, beta, temperature and offset of the clustering to recover planted groups."""

import argparse

import torch

import setok_kernels as sk
from setok_kernels.testing import pair_agreement, planted_clusters


def agreement(cluster: sk.TokenClustering, x: torch.Tensor, groups: torch.Tensor) -> float:
    """Return the fraction of token pairs on which clusters and groups agree."""
    with torch.no_grad():
        return pair_agreement(cluster(x).labels, groups).mean().item()


def main() -> None:
    """Start from a bandwidth that splits every group, and train through the masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="steps of the optimizer")
    arguments = parser.parse_args()

    x, groups = planted_clusters(batch=8, tokens=60, dim=16, clusters=5, noise=0.5)
    held_out, held_out_groups = planted_clusters(8, 60, 16, 5, seed=1, noise=0.5)
    config = sk.ClusterConfig(max_clusters=16, bandwidth=0.05)
    cluster = sk.TokenClustering(config)
    optimizer = torch.optim.Adam(cluster.parameters(), lr=0.05)
    together = (groups[:, :, None] == groups[:, None]).float()  # (B, N, N)

    before = agreement(cluster, held_out, held_out_groups)
    for step in range(arguments.steps):
        masks = cluster(x).masks  # (B, C + 1, N)
        # The probability that two tokens share a cluster, against whether they share a group.
        shared = torch.einsum("bci,bcj->bij", masks, masks).clamp(1e-6, 1 - 1e-6)
        loss = torch.nn.functional.binary_cross_entropy(shared, together)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3}: loss {loss.item():.3f}")

    first, last = config.to_dict(), cluster.current_config().to_dict()
    for name in ("bandwidth", "beta", "temperature", "offset"):
        print(f"{name:11} {first[name]:.3f} -> {last[name]:.3f}")
    after = agreement(cluster, held_out, held_out_groups)
    print(f"pairs of held-out tokens grouped right: {before:.1%} -> {after:.1%}")


if __name__ == "__main__":
    main()
