"""TokenClustering: parameters, state, and that it learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import setok_kernels as sk
from setok_kernels.config import LEARNABLE

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")


@pytest.fixture
def default_dtype():
    """Sets torch's default dtype; restores it."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def test_parameters_stay_positive():
    module = sk.TokenClustering(sk.ClusterConfig(bandwidth=0.7, temperature=0.2))
    assert set(dict(module.named_parameters())) == {
        "log_bandwidth", "beta", "log_temperature", "offset"
    }  # fmt: skip
    config = module.current_config()
    assert config.bandwidth.item() == pytest.approx(0.7)
    assert config.temperature.item() == pytest.approx(0.2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 30
    config = module.current_config()
    assert config.bandwidth > 0 and config.temperature > 0 and config.beta < 0


def test_only_what_is_named_learns():
    module = sk.TokenClustering(learnable=("beta",))
    assert list(module.state_dict()) == ["beta"]
    assert module.current_config().bandwidth == 0.5
    assert list(sk.TokenClustering(learnable=()).parameters()) == []
    with pytest.raises(ValueError, match=r"learnable: expected some of bandwidth.*got 'k'"):
        sk.TokenClustering(learnable=("k",))


def test_state_goes_from_one_to_another():
    one = sk.TokenClustering(sk.ClusterConfig(beta=0.3, bandwidth=0.9))
    other = sk.TokenClustering()
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(x).masks, other(x).masks)
    assert not torch.equal(sk.TokenClustering()(x).masks, one(x).masks)


def test_state_of_earlier_versions_loads():
    """Their parameters had no dimensions."""
    one = sk.TokenClustering(sk.ClusterConfig(beta=0.3, bandwidth=0.9))
    old = {f"cluster.{name}": value[0] for name, value in one.state_dict().items()}
    holder = torch.nn.Module()
    holder.cluster = sk.TokenClustering()
    holder.load_state_dict(old)
    for name, value in one.state_dict().items():
        assert torch.equal(holder.state_dict()[f"cluster.{name}"], value)
    assert all(value.dim() == 0 for value in old.values())
    with pytest.raises(RuntimeError, match="size mismatch for beta"):
        one.load_state_dict(one.state_dict() | {"beta": torch.zeros(2)})


def test_parameters_are_float32_and_come_back(default_dtype):
    """A half-precision default is for the weights of networks; a logarithm needs its digits."""
    for dtype in (torch.bfloat16, torch.float64):
        default_dtype(dtype)
        module = sk.TokenClustering(sk.ClusterConfig(beta=0.3))
        assert {(p.dtype, tuple(p.shape)) for p in module.parameters()} == {(torch.float32, (1,))}
        with torch.device("meta"):
            late = sk.TokenClustering(sk.ClusterConfig(beta=0.3))
        late.to_empty(device="cpu")
        late.reset_parameters()
        for a, b in zip(module.parameters(), late.parameters(), strict=True):
            assert torch.equal(a, b)


def test_initial_values_may_be_tensors():
    module = sk.TokenClustering(sk.ClusterConfig(beta=torch.tensor(0.25)))
    assert module.beta.item() == 0.25 and module.beta.is_leaf


def test_repr_names_the_options():
    text = repr(sk.TokenClustering(sk.ClusterConfig(k=5), learnable=("beta",), backend="reference"))
    assert "k=5" in text and "learnable=('beta',)" in text and "backend='reference'" in text


def test_calls_take_every_layout(backend):
    module = sk.TokenClustering(backend=backend)
    x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9, dtype=torch.bool)
    packed = module(x.flatten(0, 1), cu_seqlens=torch.tensor([0, 9, 18]), max_seqlen=9)
    masked = module(x, token_mask=mask)
    assert torch.equal(packed.labels, masked.labels.flatten())
    replayed = module(x, decisions=masked.decisions)
    assert torch.equal(replayed.masks, masked.masks)
    packed.masks[0].sum().backward()
    assert all(getattr(module, n).grad is not None for n in ("log_bandwidth", "beta"))


def adjusted_rand_index(labels, groups):
    """Agreement of two partitions, 1 when equal, about 0 by chance (Hubert and Arabie, 1985)."""
    table = torch.zeros(int(labels.max()) + 1, int(groups.max()) + 1, dtype=torch.float64)
    table.index_put_((labels, groups), torch.ones(len(labels), dtype=torch.float64), True)

    def pairs(n):
        return (n * (n - 1) / 2).sum()

    same, by_label, by_group = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = by_label * by_group / pairs(torch.tensor([len(labels)], dtype=torch.float64))
    return ((same - expected) / ((by_label + by_group) / 2 - expected)).item()


def planted(generator, images=8, groups=4, members=12, noisy=12):
    """Tokens whose first features tell their group, under louder ones that tell nothing."""
    centres = torch.eye(groups)
    group = torch.arange(groups).repeat_interleave(members).expand(images, -1)
    signal = centres[group] + 0.1 * torch.randn(images, group.shape[1], groups, generator=generator)
    noise = 1.5 * torch.randn(images, group.shape[1], noisy, generator=generator)
    return torch.cat([signal, noise], 2), group


def train(detached, steps=120):
    """An encoder and the four hyper-parameters, through the masks alone; index before and after."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x, group = planted(generator)
    held_out, held_out_group = planted(generator)
    encoder = torch.nn.Linear(x.shape[2], 8, bias=False)
    cluster = sk.TokenClustering(sk.ClusterConfig(max_clusters=8))
    optimizer = torch.optim.Adam(
        [
            {"params": encoder.parameters(), "lr": 0.02},
            {"params": cluster.parameters(), "lr": 0.01},
        ]
    )
    before = {name: p.detach().clone() for name, p in cluster.named_parameters()}
    together = (group[:, :, None] == group[:, None]).float()

    def score():
        with torch.no_grad():
            labels = cluster(encoder(held_out)).labels
        pairs = zip(labels, held_out_group, strict=True)
        return sum(adjusted_rand_index(a, b) for a, b in pairs) / len(labels)

    first = score()
    for _ in range(steps):
        features = encoder(x)
        masks = cluster(features.detach() if detached else features).masks
        # Tokens share clusters as much as they share groups.
        shared = torch.einsum("bci,bcj->bij", masks, masks)
        loss = torch.nn.functional.mse_loss(shared, together)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {n: (p.detach() - before[n]).abs().item() for n, p in cluster.named_parameters()}
    return first, score(), moved


def test_it_learns_planted_groups_through_the_masks():
    first, last, moved = train(detached=False)
    assert first < 0.5 and last > 0.95, (first, last)
    assert len(moved) == len(LEARNABLE) and min(moved.values()) > 1e-3, moved


def test_it_does_not_learn_without_the_gradient_of_the_tokens():
    first, last, _ = train(detached=True)
    assert first < 0.5 and last < 0.5, (first, last)


def test_two_processes_share_it_and_compute_the_same(tmp_path):
    """FSDP2 shards no parameter without dimensions, and hands masks on in 16 bits."""
    program, path = Path(__file__).parent / "helpers" / "sharded.py", tmp_path / "found.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [*command, program, path], text=True, capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    out = torch.load(path)
    assert out["world"] == 2 and out["dtype"] == torch.bfloat16
    learnt = {f"cluster.{name}" for name, _ in sk.TokenClustering().named_parameters()}
    assert learnt < set(out["found"])
    for name, grad in out["found"].items():
        assert grad.abs().max() > 0, name
        # What 16 bits keep of each rank's gradient.
        want = out["expected"][name]
        near = dict(rtol=2**-7, atol=2**-8 * want.abs().max().item())
        torch.testing.assert_close(grad, want, **near, msg=name)
    sk.TokenClustering().load_state_dict(
        {name.removeprefix("cluster."): out["state"][name] for name in learnt}
    )
