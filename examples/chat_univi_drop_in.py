"""Replace the clustering of Chat-UniVi by one import: the same call, deterministic and masked."""

import argparse

import torch

# Before: from ChatUniVi.model.cluster import cluster_dpc_knn, merge_tokens
from setok_kernels.compat.chatunivi import cluster_dpc_knn, merge_tokens


def token_dict_of(x: torch.Tensor) -> dict:
    """Return the dictionary that Chat-UniVi hands from layer to layer."""
    batch, number, _ = x.shape
    return {
        "x": x,
        "token_num": number,
        "idx_token": torch.arange(number).repeat(batch, 1),
        "agg_weight": x.new_ones(batch, number, 1),
        "mask": None,
    }


def main() -> None:
    """Cluster and merge twice, as the layers of Chat-UniVi do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=576, help="patches of an image")
    parser.add_argument("--clusters", type=int, nargs="+", default=[64, 32], help="of each layer")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, arguments.patches, 128, generator=generator)

    tokens = token_dict_of(x)
    for clusters in arguments.clusters:
        ids, number = cluster_dpc_knn(tokens, clusters, k=5)  # (B, N), clusters
        merged = merge_tokens(tokens, ids, number)
        print(f"{tokens['token_num']} tokens -> {merged['token_num']}: {tuple(merged['x'].shape)}")
        tokens = merged

    tokens = token_dict_of(x)
    calls = [cluster_dpc_knn(tokens, 16)[0] for _ in range(5)]
    different = {tuple(ids.flatten().tolist()) for ids in calls}
    print(f"five calls give {len(different)} result (the original adds random noise to each)")

    # Half of the second image is padding that holds NaN.
    half = arguments.patches // 2
    x[1, half:] = torch.nan
    mask = torch.ones(2, arguments.patches)
    mask[1, half:] = 0
    ids, number = cluster_dpc_knn(tokens, 16, token_mask=mask)
    # Chat-UniVi gives padding the weight -inf.
    weight = torch.ones_like(mask).masked_fill(mask == 0, -torch.inf)[..., None]
    merged = merge_tokens(tokens, ids, number, weight)
    print(f"NaN in the merged tokens with padding: {bool(merged['x'].isnan().any())}")


if __name__ == "__main__":
    main()
