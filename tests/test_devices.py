"""On an accelerator everything stays there and the host never waits for it.

The meta device stands for the accelerator: mixing it with the CPU raises, and so does reading a
value on the host, because there is none.
"""

import pytest
import torch

import setok_kernels as sk
from setok_kernels import testing
from setok_kernels.compat import chatunivi, divt, setok

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")

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


def everything(x, mask, backend):
    """What every public function and method returns for tokens on the CPU."""
    module = sk.TokenClustering(sk.ClusterConfig(max_clusters=5), backend=backend).to_empty(
        device="cpu"
    )
    module.reset_parameters()
    cu_seqlens, packed = torch.zeros(3, dtype=torch.int32, device="cpu"), x.flatten(0, 1)
    cu_seqlens[1:] = torch.tensor([6, 24], device="cpu")
    results = []
    for out in (
        module(x, token_mask=mask),
        module(packed, cu_seqlens=cu_seqlens),
        sk.dpc_knn(x, 4, 0.1, token_mask=mask, cap="eccentricity", backend=backend),
        sk.dpc_knn(packed, 4, cu_seqlens=cu_seqlens, backend=backend),
        sk.threshold_greedy(x, 0.5, mask, backend=backend),
        sk.threshold_greedy(packed, 0.5, cu_seqlens=cu_seqlens, backend=backend),
    ):
        tokens = packed if out.cu_seqlens is not None else x
        merged = sk.merge_tokens(tokens, out, backend=backend)
        # 6 tokens and 18 of the packed images; 12 of each padded one.
        grids = [(2, 3), (3, 6)] if out.cu_seqlens is not None else [(2, 6), (3, 4)]
        results += [merged, sk.unmerge_tokens(merged, out, backend=backend), out.occupied()]
        for order in ("seed", "raster", "size"):
            rows = out.pack(merged, order=order, grids=grids)
            results += [*rows, rows.centroids, rows.seeds, rows.unpack(), *rows.padded()]
        results += [v for v in vars(out).values() if isinstance(v, torch.Tensor)]
    ids, _ = chatunivi.cluster_dpc_knn({"x": x}, 4, backend=backend)
    token_dict = {"x": x, "idx_token": ids, "agg_weight": x[..., :1]}
    results += [ids, chatunivi.merge_tokens(token_dict, ids, 4, backend=backend)["x"]]
    results += setok.cluster_dpc_knn(x[0], 3, backend=backend)
    results += divt.threshold_greedy(x, x, 0.5, backend=backend)
    return results


@pytest.mark.parametrize("default", ["meta", "cpu"])
def test_a_default_device_changes_nothing(default, backend):
    """Models are made under `torch.device("meta")`; what lies elsewhere stays there."""
    x = testing.planted_clusters(2, 12, 4, 3)[0]
    mask = torch.arange(12).expand(2, -1) < 11
    expected = everything(x, mask, backend)
    with torch.device(default):
        found = everything(x, mask, backend)
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert got.device == want.device and torch.equal(got, want)


def test_empty_grids_under_a_default_device(backend):
    out = sk.dpc_knn(torch.zeros(0, 4, 2), 3, backend=backend)
    with torch.device("meta"):
        assert out.pack(torch.zeros(0, 3, 2, device="cpu"), grids=[]).cu_seqlens.tolist() == [0]
