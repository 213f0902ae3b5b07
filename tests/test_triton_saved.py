"""What the forward pass of the Triton backend saves for its gradients, in the interpreter."""

import dataclasses
import os

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter", allow_module_level=True)

import setok_kernels as sk
from helpers import interpreter
from setok_kernels import testing
from setok_kernels.compiled import DENSE_LIMITS
from setok_kernels.saved import saved_bytes
from setok_triton import backend
from setok_triton.workspace import Saved

interpreter.repair()
# NumPy warns of what the kernels mask away.
pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

VALUES = ("masks", "density", "delta", "score")
OPERATION = torch.ops.setok_interpreted.cluster_backward.default
# Position of `saved` among the arguments of the operation.
SAVED = [argument.name for argument in OPERATION._schema.arguments].index("saved")


@pytest.mark.parametrize("limit", [2048, 0], ids=["dense", "streaming"])
@pytest.mark.parametrize("layout", ["padded", "masked", "packed"])
@pytest.mark.parametrize("tops", [False, True])
def test_saved_values_are_those_computed_again(limit, layout, tops, monkeypatch):
    """Norms, flags, scales and targets of delta; in a replay every token may be without parent."""
    monkeypatch.setitem(DENSE_LIMITS, "triton", limit)
    packed, cu_seqlens, padded, mask = testing.ragged_batch([30, 0, 1, 20], 12)
    padded[0, 7] = packed[7] = torch.nan
    x, given = {
        "padded": (padded[:1], {}),
        "masked": (padded, dict(token_mask=mask)),
        "packed": (packed, dict(cu_seqlens=cu_seqlens)),
    }[layout]
    config = sk.ClusterConfig(max_clusters=5, k=4)
    out, kept = sk.cluster_tokens(x, config, backend="triton", **given), []
    if tops:
        forced = dataclasses.replace(
            out.decisions, parent=torch.full_like(out.decisions.parent, -1)
        )
        given["decisions"] = forced
    plain = backend.cluster_backward
    monkeypatch.setattr(backend, "cluster_backward", lambda *a: kept.append(a) or plain(*a))
    x = x.requires_grad_()
    out = sk.cluster_tokens(x, config, backend="triton", **given)
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(getattr(out, name).shape, generator=generator) for name in VALUES]
    torch.autograd.backward([getattr(out, name) for name in VALUES], grads)
    (arguments,) = kept
    assert arguments[SAVED].dtype == torch.uint8
    again = plain(*arguments[:SAVED], None, *arguments[SAVED + 1 :])[0]
    if limit == 0:
        assert torch.equal(x.grad, again)
    # NumPy sums the products of other tiles in another order.
    tolerance = dict(rtol=0, atol=1e-5 * again.abs().max().item())
    torch.testing.assert_close(x.grad, again, **tolerance)
    assert (again != 0).any()


def test_saved_memory_is_that_of_a_formula():
    """Beside what the C++ kernels keep: 9 bytes a token and 8 an image, in whole lines."""
    images, tokens, dim, k, clusters = 3, 70, 12, 8, 20
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = testing.vit_like_tokens(images, tokens, dim).requires_grad_()
    config = sk.ClusterConfig(k=k, max_clusters=clusters)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sk.cluster_tokens(x, config, backend="triton")
    total = images * tokens
    decisions = 8 * (total * (k + 1) + images * (clusters + 1))
    values = 4 * total * (clusters + 1 + 3)
    saved = 128 * (-(-total // 128) + 2 * -(-4 * images // 128) + 2 * -(-4 * total // 128))
    assert saved == saved_bytes(total, images)
    assert sum(kept.values()) == 4 * total * dim + decisions + values + saved
    assert all(len(part) for part in Saved.of(torch.empty(saved, dtype=torch.uint8), total, images))


def test_nothing_is_kept_without_a_gradient():
    """The result holds its own tensors only."""
    out = sk.cluster_tokens(testing.vit_like_tokens(1, 20, 6), backend="triton")
    kept = [v for v in (*vars(out).values(), *vars(out.decisions).values()) if v is not None]
    assert not any(isinstance(v, torch.Tensor) and v.dtype == torch.uint8 for v in kept)
    assert out.masks.grad_fn is None
