"""Print a digest of each result of soft merges on the PTX emulator; run by `ptxemu.run`."""

import hashlib

import torch

from setok_triton import merge, merge_backward, unmerge
from setok_triton.row_products import row_products, row_sums

CASES = [
    (torch.bfloat16, "highest"),
    (torch.float16, "highest"),
    (torch.float32, "highest"),
    (torch.float32, "high"),
    (torch.float32, "medium"),
]


def check_flags(grad, x, labels, masks, counts, offsets, longest) -> None:
    """Of tokens with features at the ends of the range, only infinite ones are excluded.

    Raises:
        AssertionError: a flag is wrong.
    """
    largest = torch.finfo(x.dtype).max
    x = x.clone()
    x[0, 1], x[1, 2], x[2, 0], x[5, 3] = largest, -largest, torch.finfo(x.dtype).tiny, -torch.inf
    sums = row_sums(x, masks, None, grad.shape[0], longest)
    row_products(grad, x, labels, masks, counts, offsets, longest, sums)
    assert torch.equal(sums.p_ok != 0, (labels >= 0) & x.isfinite().all(1)), sums.p_ok


def main() -> None:
    """Merge and unmerge two images, forward and backward, in each dtype."""
    for dtype, precision in CASES:
        torch.set_float32_matmul_precision(precision)
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(140, 24, generator=draw).to(dtype)
        x[3, 5] = torch.nan
        grad = torch.randn(2, 90, 24, generator=draw).to(dtype)
        masks = torch.rand(2, 90, 70, generator=draw)
        weights = torch.rand(140, generator=draw)
        labels = torch.where(torch.arange(140) % 9 == 4, -1, 0)
        counts, offsets = torch.tensor([64, 89]), torch.tensor([0, 70, 140])
        images = (counts, offsets, 70)
        results = [
            merge.merge_soft(x, labels, weights, masks, *images, 1e-6),
            unmerge.unmerge_soft(grad, masks, *images, 140),
            *merge_backward.merge_backward(grad, x, masks, labels, weights, *images, 1e-6, True),
            *merge_backward.unmerge_backward(x.nan_to_num(), grad, masks, labels, *images, True),
        ]
        check_flags(grad, x, labels, masks, *images)
        for result in results:
            data = result.contiguous().view(torch.uint8).numpy().tobytes()
            print(dtype, hashlib.sha256(data).hexdigest())


if __name__ == "__main__":
    main()
