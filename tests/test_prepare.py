"""Offsets and mask numbers, which one launch writes, in the interpreter."""

import os

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter", allow_module_level=True)

from setok_triton.prepare import prepare

NUMBERS = (0.5, 0.1, 0.2, 0.4)


@pytest.mark.parametrize("images", [0, 1, 3, 255, 256, 600])
def test_padded_images_lie_one_after_the_other(images):
    """Also where images may have more tokens than these have, and beyond 31 bits."""
    x = torch.empty(images, 2**24, 0)
    offsets, learnable = prepare(x, None, 2**25)
    assert offsets.dtype == torch.int64 and learnable is None
    assert torch.equal(offsets, torch.arange(images + 1) * 2**24)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("images", [0, 1, 255, 256, 600])
def test_packed_images_lie_where_they_say(images, dtype):
    lengths = torch.randint(0, 5, (images,), generator=torch.Generator().manual_seed(0))
    given = torch.zeros(images + 1, dtype=dtype)
    given[1:] = lengths.cumsum(0)
    offsets, learnable = prepare(torch.empty(int(given[-1]), 3), given, 4, NUMBERS)
    assert torch.equal(offsets, given.long()) and offsets.dtype == torch.int64
    assert torch.equal(learnable, torch.tensor(NUMBERS))


def test_numbers_of_padded_images():
    offsets, learnable = prepare(torch.empty(2, 7, 3), None, 7, NUMBERS)
    assert offsets.tolist() == [0, 7, 14] and torch.equal(learnable, torch.tensor(NUMBERS))
    # Kernels are compiled anew for other alignments.
    assert offsets.data_ptr() % 16 == learnable.data_ptr() % 16 == 0


@pytest.mark.parametrize("images", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("wrong", ["first", "falling", "long", "last below", "last above"])
def test_wrong_offsets_are_errors(images, wrong):
    given = torch.arange(images + 1) * 2
    total, longest = 2 * images, 2
    place = images // 2
    if wrong == "first":
        given[0] = 1
    elif wrong == "falling":
        # Only the difference is wrong: both ends are as they should be.
        given = torch.cat([given[: place + 1], given[place:] - 1])
        given[-1], longest = total, 3
    elif wrong == "long":
        longest = 1
    else:
        total += 1 if wrong == "last below" else -1
    message = (
        rf"cu_seqlens: expected non-decreasing offsets from 0 to {total}, .* = {longest} tokens"
    )
    with pytest.raises(RuntimeError, match=message):
        prepare(torch.empty(total, 3), given, longest)
