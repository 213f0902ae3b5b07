"""Inputs of the cases, and allowed errors relative to plain PyTorch."""

import itertools

import torch


def arrange(x, layout, seed=0):
    """Return the same tokens plain, masked, packed between other images, unaligned, or padded.

    Unaligned tokens also have a mask; both start one element after an aligned address. Every other
    padded image has half of its tokens.
    """
    if layout == "plain":
        return x, {}
    if layout == "unaligned":
        x, given = arrange(x, "masked", seed)
        return off_by_one(x), {"token_mask": off_by_one(given["token_mask"])}
    batch, tokens, _ = x.shape
    if layout == "padded":
        lengths = torch.where(torch.arange(batch) % 2 == 0, max(1, tokens // 2), tokens)
        return x, {"token_mask": torch.arange(tokens) < lengths[:, None]}
    generator = torch.Generator().manual_seed(seed)
    if layout == "masked":
        mask = torch.rand(batch, tokens, generator=generator) > 0.25
        mask[0, 0] = True
        return x, {"token_mask": mask}
    lengths = [tokens, 0, 1, max(1, tokens // 2)]
    parts = [x[i % batch, :n] for i, n in enumerate(lengths)]
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return torch.cat(parts), {"cu_seqlens": offsets}


def off_by_one(tensor):
    """Return a copy at an unaligned address."""
    moved = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return moved.copy_(tensor)


def roundoff(dtype, precision):
    return 2.0**-11 if dtype == "float32" and precision == "medium" else 0.0


def near(name, got, truth, plain):
    """Assert at most twice the error of plain PyTorch, the maximum of several runs."""
    if truth.numel() == 0:
        return
    error = (got.double() - truth.double()).abs().max()
    own = max((one.double() - truth.double()).abs().max() for one in plain)
    allowed = 2 * own + 16 * torch.finfo(got.dtype).eps / 2 * truth.abs().max()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} (plain {own:.3g})"


def same(a, b, names):
    for name in names:
        assert torch.equal(getattr(a, name), getattr(b, name)), f"{name} differs"


def mask_scale(out, weights):
    """Return the weight of a row, so that no row's gradients dominate; 0 for constant masks."""
    row, counts = torch.arange(out.num_rows), out.counts[:, None]
    share = out.masks if weights is None else out.masks * weights.unsqueeze(-2)
    share = torch.where(out.labels.unsqueeze(-2) >= 0, share, 0).double()
    if out.cu_seqlens is None:
        keep = (row <= counts)[:, :, None] & (out.labels >= 0)[:, None]
        return (share.sum(2, keepdim=True) + 1e-6) * keep
    lengths = out.cu_seqlens.diff().tolist()
    parts = [part.sum(1, keepdim=True).expand_as(part) for part in share.split(lengths, 1)]
    keep = (row <= counts.repeat_interleave(out.cu_seqlens.diff().long())[:, None]).T
    return (torch.cat(parts, 1) + 1e-6) * keep


class Ordered(torch.autograd.Function):
    """Return float32 products summed serially, as on a GPU, not in the CPU's blocks."""

    @staticmethod
    def product(a, b):
        out = torch.zeros(a.shape[0], a.shape[1], b.shape[2], dtype=a.dtype)
        for k in range(a.shape[2]):
            out.addcmul_(a[:, :, k : k + 1], b[:, k : k + 1])
        return out

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return Ordered.product(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return Ordered.product(grad, b.mT), Ordered.product(a.mT, grad)


def sum_in_order():
    """Measure the error of plain PyTorch as on a GPU: its products are all by `torch.bmm`."""
    plain = torch.bmm
    torch.bmm = lambda a, b: Ordered.apply(a, b) if a.dtype == torch.float32 else plain(a, b)
