"""Where the Triton kernels may not reach: other devices, other images, other memory."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter", allow_module_level=True)

import setok_kernels as sk
import setok_triton
from helpers import interpreter
from setok_kernels import compiled, ops, testing
from setok_triton import backend

interpreter.repair()

pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

OPS = torch.ops.setok_interpreted
CONFIG = sk.ClusterConfig(k=3, max_clusters=4, stop_residual=0.0)


@pytest.mark.parametrize("name", ops.SCHEMAS)
def test_kernels_run_on_the_device_of_x(name, monkeypatch):
    """Triton launches on the current device; a machine of two stands in for one that has them."""
    current, seen = [0], []

    def exchange(index):
        before = current[0]
        current[0] = index if index >= 0 else before
        return before

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    operation = getattr(torch.ops.setok, name).default
    results = len(operation._schema.returns)

    def launch(x, *_):
        seen.append(current[0])
        return x if results == 1 else (x,) * results

    monkeypatch.setattr(backend, name, launch)
    # One tensor stands for all, which fits no operation.
    monkeypatch.setattr(ops, "check_operands", lambda operands: None)
    with FakeTensorMode():
        x = torch.empty(2, 3, 4, device="cuda:1")
        fitting = {"Tensor": x, "int": 1, "float": 1.0, "bool": True}
        arguments = [fitting.get(str(a.type)) for a in operation._schema.arguments]
        # The kernel that is registered for CUDA itself, not the fake.
        operation._op_dk(torch._C.DispatchKey.CUDA, *arguments)
    assert seen == [1] and current == [0]


def everything(x, **arguments):
    """Every operation, forward and backward."""
    x, results = x.requires_grad_(), []
    module = sk.TokenClustering(CONFIG, backend="triton")
    out = module(x, **arguments)
    again = module(x, decisions=out.decisions, **arguments)
    loss = out.density.sum() + out.delta.sum() + out.score.sum() + again.masks.square().sum()
    weights = torch.ones(x.shape[:-1]).requires_grad_()
    for mode in ("soft", "hard"):
        for w in (weights, None):
            merged = sk.merge_tokens(x, out, mode, w, backend="triton")
            spread = sk.unmerge_tokens(merged, out, mode, backend="triton")
            loss = loss + spread.square().sum() + merged.sum()
            results += [merged, spread]
    budget = torch.tensor([2])
    guide = dict(importance=weights, num_clusters=budget, exact=True)
    guided = module(x, **guide, **arguments)
    again = module(x, **guide, decisions=guided.decisions, **arguments)
    loss = loss + guided.score.sum() + again.masks.square().sum()
    results += [guided.masks, guided.labels, guided.score, again.labels]
    loss.backward()
    for options in (
        dict(num_clusters=3),
        dict(threshold=0.3, cap="eccentricity"),
        dict(num_clusters=budget, importance=weights),
    ):
        peaks = sk.dpc_knn(x, **options, k=3, backend="triton", **arguments)
        results += [peaks.labels, peaks.density, peaks.delta, peaks.parent, peaks.knn]
    # Without what the forward pass saves.
    d, values = out.decisions, [getattr(out, n).detach() for n in ("masks", "density", "delta")]
    images = (arguments.get("cu_seqlens"), arguments.get("max_seqlen", x.shape[-2]))
    known, values = (d.knn, d.parent, d.seeds, d.counts), (*values, out.score.detach())
    options = compiled.mask_options(CONFIG, x)
    given = (x.detach(), arguments.get("token_mask"), None, *images, *known, *values, *values)
    results += OPS.cluster_backward(*given, None, *options)
    results.append(sk.threshold_greedy(x, 0.3, backend="triton", **arguments).labels)
    results += [out.masks, out.labels, out.density, out.delta, out.score, out.decisions.knn]
    return [t.detach() for t in (*results, x.grad, weights.grad)]


def kernels():
    """Names of all kernels there are."""
    found = set()
    for folder in setok_triton.__path__:
        for source in Path(folder).glob("*.py"):
            found |= set(re.findall(r"^def (\w+_kernel)\(", source.read_text(), re.MULTILINE))
    return found


def test_no_kernel_leaves_its_tensors(monkeypatch):
    """An image alone: what is behind its last token, or row, is no tensor's."""
    x = testing.integer_tokens(1, 19, 5)
    with interpreter.guarded_memory(monkeypatch) as launched:
        everything(x.clone())
        everything(x[0], cu_seqlens=torch.tensor([0, 19]), max_seqlen=19)
        monkeypatch.setitem(compiled.DENSE_LIMITS, "triton", 0)
        # More than one block of tokens.
        x = testing.integer_tokens(1, 37, 5)
        everything(x, token_mask=torch.arange(37)[None] != 36)
    assert launched == kernels()


def test_what_is_behind_an_image_has_no_influence(regime):
    """The next image begins where a load one too far would read."""
    lengths = [17, 1, 16]
    packed, cu_seqlens, _, _ = testing.ragged_batch(lengths, 5, exact=True)
    start = cu_seqlens.tolist()
    poisoned = packed.clone()
    poisoned[start[1] : start[2]] = torch.nan
    out, other = (
        sk.cluster_tokens(x, CONFIG, cu_seqlens=cu_seqlens, backend="triton")
        for x in (packed, poisoned)
    )
    away = torch.ones(sum(lengths), dtype=torch.bool)
    away[start[1] : start[2]] = False
    for name in ("labels", "density", "delta", "score"):
        assert torch.equal(getattr(out, name)[away], getattr(other, name)[away]), name
    assert torch.equal(out.masks[:, away], other.masks[:, away])


def test_a_max_seqlen_too_small_is_an_error_of_the_operation():
    x = testing.integer_tokens(1, 14, 5)[0]
    cu_seqlens = torch.tensor([0, 5, 14])
    out = sk.cluster_tokens(x, CONFIG, cu_seqlens=cu_seqlens, backend="reference")
    shares = (None, out.labels, out.counts)
    for offsets, longest in (([0, 5, 14], 8), ([0, 9, 5], 9), ([1, 5, 14], 9), ([0, 5, 15], 10)):
        images = (torch.tensor(offsets), longest)
        for call in (
            lambda i=images: OPS.threshold_greedy(x, None, *i, 0.5),
            lambda i=images: OPS.merge(x, *shares, None, *i, 5, 1e-6),
            lambda i=images: OPS.unmerge(torch.zeros(2, 5, 5), *shares, *i),
            lambda i=images: OPS.unmerge_backward(x, torch.zeros(2, 5, 5), *shares, *i, False),
        ):
            with pytest.raises(RuntimeError, match=rf"cu_seqlens: .*max_seqlen = {longest} tokens"):
                call()


def test_a_max_seqlen_too_small_reads_nothing_out_of_bounds(regime, monkeypatch):
    """A GPU says so later than the kernels run: they must stay within what they were given."""
    x = testing.integer_tokens(1, 14, 5)[0]
    kept = torch.tensor([*range(5), *range(5, 13)])
    short, whole = torch.tensor([0, 5, 13]), torch.tensor([0, 5, 14])
    x[13] = torch.nan
    monkeypatch.setattr(torch, "_assert_async", lambda *_: None)
    arguments = (*[None] * 5, 0, 0, 0.5, 0.1, 0.1, 0.5, 0, 0.0, True, 3, 4, True, False, False)
    limit = compiled.DENSE_LIMITS["triton"]
    with interpreter.guarded_memory(monkeypatch):
        found = OPS.cluster(x, *[None] * 3, whole, 8, *arguments, 0.0, 0.0, limit)
        rest = (*[None] * 3, short, 8, *arguments, 0.0, 0.0, limit)
        expected = OPS.cluster(x[kept].contiguous(), *rest)
        masks, labels, density, delta, score, knn, parent, seeds, counts, _ = found
        assert torch.equal(masks[:, kept], expected[0])
        for got, want in zip(
            (labels, density, delta, score, knn, parent), expected[1:7], strict=True
        ):
            assert torch.equal(got[kept], want)
        assert torch.equal(seeds, expected[7]) and torch.equal(counts, expected[8])
        got, want = (
            OPS.dpc_knn(t, None, o, 8, *[None] * 3, 3, 4, 0.3, 1, False, True, limit)
            for t, o in ((x, whole), (x[kept].contiguous(), short))
        )
        assert torch.equal(got[0][kept], want[0]) and torch.equal(got[1], want[1])
        got, want = (
            OPS.threshold_greedy(t, None, o, 8, 0.3)
            for t, o in ((x, whole), (x[kept].contiguous(), short))
        )
        assert torch.equal(got[0][kept], want[0]) and torch.equal(got[1], want[1])
