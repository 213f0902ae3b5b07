"""The memory of a call on kept rows."""

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)

from setok_triton.workspace import ALIGNMENT, carve


def test_parts_share_one_allocation_and_begin_on_lines():
    parts = [(torch.int8, 3), (torch.float64, 5), (torch.float32, 0), (torch.int32, 33)]
    found = carve(torch.empty(1), parts)
    assert [part.dtype for part in found] == [dtype for dtype, _ in parts]
    assert all(len(part) >= size for part, (_, size) in zip(found, parts, strict=True))
    assert len({part.untyped_storage().data_ptr() for part in found}) == 1
    starts = [part.storage_offset() * part.itemsize for part in found]
    assert all(start % ALIGNMENT == 0 for start in starts)
    # Rows of distances, which begin on 64 bytes, then touch no sector more than they fill.
    assert ALIGNMENT % 64 == 0


def test_parts_do_not_overlap():
    parts = [(torch.int8, 3), (torch.float64, 5), (torch.int32, 33)]
    found = carve(torch.empty(1), parts)
    for value, part in enumerate(found):
        part.fill_(value)
    assert [part.unique().tolist() for part in found] == [[0], [1], [2]]
