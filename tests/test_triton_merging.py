"""Soft merges of many rows, and of batches of several sizes, in the interpreter."""

import os

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter", allow_module_level=True)

from helpers import interpreter

interpreter.repair()
# NumPy warns of what the kernels mask away.
pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

OPS = torch.ops.setok_interpreted
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Rows of the residuals: in the first block of rows and in the second.
COUNTS = [3, 90]


def batch(images, tokens, dim, rows, dtype):
    """Random tokens, masks, labels, counts and weights; two tokens are excluded."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(images, tokens, dim, generator=draw).to(dtype)
    counts = torch.tensor(COUNTS)[:images].clamp(max=rows - 1)
    masks = torch.rand(images, rows, tokens, generator=draw)
    masks *= torch.arange(rows)[:, None] <= counts[:, None, None]
    labels = torch.zeros(images, tokens, dtype=torch.int64)
    labels[0, 5] = -1
    masks[0, :, 5] = 0
    x[0, 2, 1] = torch.inf
    return x, masks, labels, counts, torch.rand(images, tokens, generator=draw)


def outputs(x, masks, labels, counts, weights):
    """Everything that merge and unmerge return, forward and backward."""
    length, rows = x.shape[1], masks.shape[1]
    draw = torch.Generator().manual_seed(1)
    grad = torch.randn(2, rows, x.shape[2], generator=draw).to(x.dtype)[: len(x)]
    share, images = (masks, labels, counts), (None, length)
    return [
        OPS.merge(x, *share, weights, *images, rows, 1e-6),
        OPS.unmerge(grad, *share, *images),
        *OPS.merge_backward(grad, x, *share, weights, *images, 1e-6, True),
        *OPS.unmerge_backward(x.nan_to_num(posinf=1.0), grad, *share, *images, True),
    ]


def expected(x, masks, labels, counts, weights):
    """The same by autograd in float64."""
    rows = masks.shape[1]
    draw = torch.Generator().manual_seed(1)
    grad = torch.randn(2, rows, x.shape[2], generator=draw).to(x.dtype)[: len(x)].double()
    usable = (labels >= 0) & x.isfinite().all(-1)
    plain = x.double().where(usable[..., None], 0.0).requires_grad_()
    given, w = masks.double().requires_grad_(), weights.double().requires_grad_()
    share = given * (w * usable)[:, None]
    merged = share @ plain / (share.sum(2, keepdim=True) + 1e-6)
    grads = torch.autograd.grad(merged, (plain, given, w), grad)
    live = (torch.arange(rows) <= counts[:, None])[..., None]
    backwards = (live * masks).double() @ x.nan_to_num(posinf=1.0).double().where(
        (labels >= 0)[..., None], 0.0
    )
    of_masks = grad @ x.nan_to_num(posinf=1.0).double().mT
    return [
        merged.detach(),
        (live * masks).double().mT @ grad,
        grads[0],
        grads[1] * live,
        grads[2],
        backwards,
        of_masks * live * (labels >= 0)[:, None],
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_rows_than_one_product_takes(dtype):
    case = batch(2, 100, 21, 160, dtype)
    for got, truth in zip(outputs(*case), expected(*case), strict=True):
        # The interpreter cuts float32 off to bfloat16 instead of rounding it.
        bound = 2 * torch.finfo(got.dtype).eps * truth.abs() + 2e-5 * truth.abs().max()
        assert ((got.double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("rows", [4, 65])
def test_an_image_does_not_depend_on_the_batch(rows, monkeypatch):
    """Although fewer programs share the features of each block of tokens in a large batch."""
    case = batch(2, 70, 300, rows, torch.bfloat16)
    together = outputs(*case)
    monkeypatch.setattr("setok_triton.unmerge.feature_step", lambda tiles, blocks: blocks)
    alone = outputs(*(t[:1] for t in case))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b[:1])
