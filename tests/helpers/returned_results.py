"""Modules under DDP and FSDP2 that return results: a program of several processes.

    torchrun --standalone --nproc_per_node 2 tests/helpers/returned_results.py FILE

Rank 0 writes the gradients of each wrapper, and those of a process alone, to FILE.
"""

import sys
import warnings

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import setok_kernels as sk
from helpers.processes import end_rank
from setok_kernels import testing

CONFIG = sk.ClusterConfig(k=3, max_clusters=4, temperature=0.4, stop_residual=0.0)


class Encoder(nn.Module):
    """Two layers, whose backward needs their weights, and the clusters of their features."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6))
        self.cluster = sk.TokenClustering(CONFIG)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        features = self.layers(x)
        out = self.cluster(features)
        return {"clusters": out, "packed": out.pack(sk.merge_tokens(features, out, "soft"))}


def make() -> Encoder:
    """The same in every process."""
    torch.manual_seed(0)
    return Encoder()


def loss_of(model: nn.Module, rank: int) -> torch.Tensor:
    """Loss of one rank's batch by the masks and the packed tokens."""
    found = model(testing.vit_like_tokens(2, 20, 8, seed=rank))
    assert isinstance(found["clusters"], sk.Clusters) and isinstance(found["packed"], sk.Packed)
    return found["clusters"].masks.square().sum() + found["packed"].tokens.square().sum()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by name, None left out; those of FSDP whole."""
    named = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
    grads = {name: grad for name, grad in named.items() if grad is not None}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items()}


def sharded(world: int) -> nn.Module:
    """The model under FSDP2, whose parameters are whole only during forward and backward."""
    model, mesh = make(), init_device_mesh("cpu", (world,))
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


def main(path: str) -> None:
    """Computes the gradients of one step in each way."""
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    models = {
        "unused": DistributedDataParallel(make(), find_unused_parameters=True),
        "static": DistributedDataParallel(make(), static_graph=True),
        "sharded": sharded(world),
    }
    found = {}
    for name, model in models.items():
        loss_of(model, rank).backward()
        found[name] = gradients(model)
    if rank == 0:
        alone = []
        for other in range(world):
            single = make()
            loss_of(single, other).backward()
            alone.append(gradients(single))
        expected = {name: sum(grads[name] for grads in alone) / world for name in alone[0]}
        torch.save({"world": world, "found": found, "expected": expected}, path)
    end_rank()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1])
