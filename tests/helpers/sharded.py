"""A clustering and its soft merge under FSDP2: a program of several processes.

    torchrun --standalone --nproc_per_node 2 tests/helpers/sharded.py FILE

Rank 0 writes what they computed, and what a process alone computes, to FILE.
"""

import dataclasses
import sys

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import setok_kernels as sk
from helpers.processes import end_rank
from setok_kernels import testing

CONFIG = sk.ClusterConfig(k=3, max_clusters=4, temperature=0.4, stop_residual=0.0)
SHORT = torch.bfloat16


class Pool(nn.Module):
    """Soft merge of a clustering that another module made."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x, out):
        return self.linear(sk.merge_tokens(x, out, "soft"))


class Tokenizer(nn.Module):
    """Features that learn, their clusters, and tokens of these."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(8, 6)
        self.cluster = sk.TokenClustering(CONFIG)
        self.pool = Pool()

    def forward(self, x):
        features = self.encoder(x)
        out = self.cluster(features)
        return self.pool(features, out)


def make(dtype=torch.float32) -> Tokenizer:
    """The same in every process."""
    torch.manual_seed(0)
    return Tokenizer().to(dtype)


def shorten(module, arguments):
    """What the policy does to the arguments of a sharded module."""
    x, out = arguments
    return x, dataclasses.replace(out, masks=out.masks.to(SHORT))


def batch(rank: int) -> torch.Tensor:
    """Of one rank."""
    return testing.vit_like_tokens(2, 20, 8, seed=rank)


def main(path: str) -> None:
    """Trains one step on both ways."""
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    model, mesh = make(), init_device_mesh("cpu", (world,))
    policy = MixedPrecisionPolicy(param_dtype=SHORT, reduce_dtype=torch.float32)
    for part in (model.cluster, model.pool, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    tokens = model(batch(rank))
    tokens.float().square().sum().backward()
    found = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    state = {name: p.full_tensor() for name, p in model.state_dict().items()}
    if rank == 0:
        alone = [make(SHORT) for _ in range(world)]
        for other, single in enumerate(alone):
            single.pool.register_forward_pre_hook(shorten)
            single(batch(other).to(SHORT)).float().square().sum().backward()
        grads = [{n: p.grad.float() for n, p in single.named_parameters()} for single in alone]
        results = {
            "world": world,
            "dtype": tokens.dtype,
            "found": found,
            "expected": {name: sum(g[name] for g in grads) / world for name in found},
            "state": state,
        }
        torch.save(results, path)
    end_rank()


if __name__ == "__main__":
    main(sys.argv[1])
