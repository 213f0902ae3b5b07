"""merge_tokens, unmerge_tokens and pack."""

import pytest
import torch

import setok_kernels as sk
from setok_kernels import testing

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16, torch.float16])
def case(request, backend):
    x = testing.planted_clusters(3, 20, 6, 4, noise=0.2, dtype=request.param)[0]
    mask = torch.arange(20) < torch.tensor([20, 13, 0])[:, None]
    out = sk.cluster_tokens(x, sk.ClusterConfig(max_clusters=6), token_mask=mask, backend=backend)
    return x, out, backend


def tolerance(x):
    return dict(rtol=2 * torch.finfo(x.dtype).eps, atol=1e-5 if x.dtype != torch.float64 else 1e-12)


def test_hard_merge_is_the_mean_of_the_members(case):
    x, out, backend = case
    merged = sk.merge_tokens(x, out, backend=backend)
    assert merged.dtype == x.dtype and merged.shape == (3, 7, 6)
    for b in range(3):
        for c in range(7):
            members = x[b, out.labels[b] == c].double()
            expected = members.mean(0) if len(members) else torch.zeros(6).double()
            torch.testing.assert_close(merged[b, c], expected.to(x.dtype), **tolerance(x))


@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weighted_hard_merge(case, size, dtype):
    x, out, backend = case
    weights = size * torch.rand(3, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights[out.labels < 0] = torch.nan
    weights[0, out.labels[0] == 0] = 0
    merged = sk.merge_tokens(x, out, weights=weights, backend=backend)
    assert (merged[0, 0] == 0).all(), "a cluster of weight 0 is 0, not NaN"
    for b, c in ((0, 1), (1, 0), (1, 2)):
        pick = out.labels[b] == c
        w = weights[b, pick].double()[:, None]
        expected = (w * x[b, pick].double()).sum(0) / w.sum()
        torch.testing.assert_close(merged[b, c], expected.to(x.dtype), **tolerance(x))


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_soft_merge(case, eps):
    x, out, backend = case
    weights = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    for w in (None, weights):
        merged = sk.merge_tokens(x, out, "soft", w, eps=eps, backend=backend)
        share = out.masks.double() * (1 if w is None else w.double()[:, None])
        expected = share @ x.double() / (share.sum(2, keepdim=True) + eps)
        torch.testing.assert_close(merged, expected.to(x.dtype), **tolerance(x))


def test_unmerge(case):
    x, out, backend = case
    tokens = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    hard = sk.unmerge_tokens(tokens, out, backend=backend)
    assert hard.dtype == x.dtype
    for b in range(3):
        for i in range(20):
            label = out.labels[b, i]
            expected = tokens[b, label] if label >= 0 else torch.zeros(5, dtype=x.dtype)
            assert torch.equal(hard[b, i], expected)
    soft = sk.unmerge_tokens(tokens, out, "soft", backend=backend)
    expected = (out.masks.mT.double() @ tokens.double()).to(x.dtype)
    torch.testing.assert_close(soft, expected, **tolerance(x))


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_packed_equals_padded(backend, mode):
    packed, cu_seqlens, padded, mask = testing.ragged_batch([5, 0, 9], 3, exact=True)
    config = sk.ClusterConfig(max_clusters=4)
    one = sk.cluster_tokens(packed, config, cu_seqlens=cu_seqlens, backend=backend)
    two = sk.cluster_tokens(padded, config, token_mask=mask, backend=backend)
    weights = torch.arange(14.0)
    spread = torch.zeros(3, 9).masked_scatter(mask, weights)
    a = sk.merge_tokens(packed, one, mode, weights, backend=backend)
    b = sk.merge_tokens(padded, two, mode, spread, backend=backend)
    torch.testing.assert_close(a, b)
    a = sk.merge_tokens(packed, one, mode, backend=backend)
    torch.testing.assert_close(a, sk.merge_tokens(padded, two, mode, backend=backend))
    a, b = (sk.unmerge_tokens(b, o, mode, backend=backend) for o in (one, two))
    torch.testing.assert_close(a, b[mask])
    assert torch.equal(one.occupied(), two.occupied())


def test_pack_keeps_occupied_rows_in_order(case):
    x, out, backend = case
    merged = sk.merge_tokens(x, out, backend=backend)
    packed, cu_seqlens = out.pack(merged)
    assert cu_seqlens.dtype == torch.int32
    rows = [out.labels[b][out.labels[b] >= 0].unique() for b in range(3)]
    assert cu_seqlens.diff().tolist() == [len(r) for r in rows]
    assert torch.equal(packed, torch.cat([merged[b, r] for b, r in enumerate(rows)]))
    everything, cu_seqlens = out.pack(merged, drop_empty=False)
    assert cu_seqlens.diff().tolist() == [n + 1 for n in out.counts.tolist()]
    assert torch.equal(everything[: cu_seqlens[1]], merged[0, : out.counts[0] + 1])


def test_pack_carries_gradient(backend):
    x = testing.planted_clusters(2, 10, 3, 3)[0].requires_grad_()
    out = sk.cluster_tokens(x, backend=backend)
    out.pack(sk.merge_tokens(x, out, backend=backend)).tokens.sum().backward()
    assert (x.grad != 0).all()


def test_merge_accepts_other_features(backend):
    x = testing.planted_clusters(1, 10, 3, 3)[0]
    out = sk.cluster_tokens(x, backend=backend)
    position = torch.arange(10.0)[None, :, None]
    merged = sk.merge_tokens(position, out, backend=backend)
    assert merged.shape == (1, 65, 1)
    assert merged[0, 0, 0] == position[0, out.labels[0] == 0].mean()
    one_by_one = dict(out=out, backend=backend)
    labels = out.labels.to(torch.float32)[..., None]
    again = sk.unmerge_tokens(sk.merge_tokens(labels, **one_by_one), **one_by_one)
    torch.testing.assert_close(again, labels)
