"""Compiled kernels of the gradients of `cluster_tokens`, executed."""

import pytest

from helpers.emulated import check, emulate

pytest.importorskip("triton", exc_type=ImportError)

# A neighbour of all tokens, which also is the seed of several clusters, and lists of neighbours
# longer than a block of slots; the rows are whole slices.
STAR = """
import dataclasses, hashlib, torch, setok_kernels as sk
x = torch.cat([torch.zeros(1, 64), 3 * torch.eye(64)[:50]]).roll(7, 0)[None].to(torch.bfloat16)
digest = hashlib.sha256()
for k in (1, 20):
    config = sk.ClusterConfig(max_clusters=6, k=k, distance_scale=0.1)
    leaf = x.clone().requires_grad_()
    made = sk.cluster_tokens(x, config, backend="triton").decisions
    assert (made.knn == 7).sum() >= 50
    seeds, counts = torch.tensor([[7, 3, 7, 9, 3, 7]]), torch.tensor([6])
    made = dataclasses.replace(made, seeds=seeds, counts=counts)
    out = sk.cluster_tokens(leaf, config, decisions=made, backend="triton")
    (out.masks.square().sum() + out.density.square().sum() + out.delta.sum()).backward()
    digest.update(leaf.grad.view(torch.int16).numpy().tobytes())
print("digest", digest.hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "names"),
    [
        (90, ["gradients B,N,D,K=(2, 20, 5, 3) float32 highest dense"]),
        (80, ["gradients B,N,D,K=(2, 20, 5, 3) bfloat16 highest dense"]),
    ],
)
def test_gradients(arch, names):
    check(arch, *names)


@pytest.mark.slow
def test_no_schedule_changes_a_bit(tmp_path):
    """Edges are counted by atomics, whose order the random seed of the emulator changes."""
    script, digests = tmp_path / "star.py", set()
    script.write_text(STAR)
    for seed in range(4):
        child = emulate("run", "--arch", 90, "--options", f"seed={seed}", script)
        assert child.returncode == 0, child.stdout
        digests |= {line for line in child.stdout.splitlines() if line.startswith("digest")}
    assert len(digests) == 1
