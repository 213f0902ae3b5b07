"""On an accelerator everything stays there and the host never waits for it.

The meta device stands for the accelerator: mixing it with the CPU raises, and so does reading a
value on the host, because there is none.
"""

import pytest
import torch

import setok_kernels as sk

CONFIGS = [
    sk.ClusterConfig(max_clusters=5),
    sk.ClusterConfig.paper(max_clusters=5),
    sk.ClusterConfig(max_clusters=5, kernel="laplacian", alpha="kernel", include_self=True),
    sk.ClusterConfig(max_clusters=5, kernel="epanechnikov", min_mass=0.5, distance_scale=2.0),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("layout", ["padded", "masked", "packed", "empty"])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_nothing_leaves_the_device(config, layout, mode):
    device = torch.device("meta")
    shape = {"packed": (20, 3), "empty": (2, 0, 3)}.get(layout, (2, 10, 3))
    x = torch.zeros(shape, device=device, requires_grad=True)
    arguments = {
        "masked": dict(token_mask=torch.ones(2, 10, dtype=torch.bool, device=device)),
        "packed": dict(cu_seqlens=torch.zeros(3, dtype=torch.int32, device=device), max_seqlen=10),
    }.get(layout, {})
    out = sk.cluster_tokens(x, config, backend="reference", **arguments)
    again = sk.cluster_tokens(x, config, backend="reference", decisions=out.decisions, **arguments)
    weights = torch.ones(shape[:-1], device=device)
    merged = sk.merge_tokens(x, again, mode, weights, backend="reference")
    spread = sk.unmerge_tokens(merged, out, mode, backend="reference")
    results = [*vars(out).values(), *vars(out.decisions).values(), merged, spread, out.occupied()]
    assert all(r.device == device for r in results if isinstance(r, torch.Tensor))
    (spread.sum() + again.masks.sum()).backward()
    assert x.grad.device == device
