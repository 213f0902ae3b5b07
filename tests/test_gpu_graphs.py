"""CUDA graphs and the verification on a GPU: `TRITON_INTERPRET=0 pytest -m gpu`."""

import os

import pytest
import torch

import setok_kernels as sk
from setok_kernels import dispatch, testing
from setok_kernels.compiled import Compiled
from setok_kernels.verification import trust

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] != "0",
        reason="needs a CUDA device and TRITON_INTERPRET=0",
    ),
]


def test_the_kernels_are_verified_here(monkeypatch, tmp_path):
    monkeypatch.setenv("SETOK_CACHE", str(tmp_path))
    monkeypatch.delenv("SETOK_VERIFY", raising=False)
    monkeypatch.setattr(trust, "_TRUSTED", {})
    device = torch.device("cuda", torch.cuda.current_device())
    verdict, report = trust.verify(device)
    print(f"{verdict.seconds:.1f} s", *verdict.outcomes, sep="\n")
    assert verdict.state == "passed", report.read_text()
    assert dispatch.select_backend("auto", device, torch.bfloat16) == Compiled("triton")


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_graph_of_forward_and_backward(layout):
    def tokens(seed):
        x = testing.vit_like_tokens(2, 729, 64, seed).cuda()
        return x.flatten(0, 1) if layout == "packed" else x

    given = {"backend": "triton"}
    if layout == "packed":
        offsets = torch.tensor([0, 500, 1458], dtype=torch.int32, device="cuda")
        given |= dict(cu_seqlens=offsets, max_seqlen=958)

    def step(x):
        out = sk.cluster_tokens(x, **given)
        merged = sk.merge_tokens(x, out, "soft", backend="triton")
        loss = merged.square().mean() + out.masks.square().mean()
        return out.labels, merged, torch.autograd.grad(loss, x)[0]

    x = tokens(0).requires_grad_()
    # A capture may not compile, nor be the first on its stream.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x)
    with torch.no_grad():
        x.copy_(tokens(1))
    graph.replay()
    expected = step(tokens(1).requires_grad_())
    for got, want in zip(captured, expected, strict=True):
        assert torch.equal(got, want)
