import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from setokim.data.rle import decode_rle, encode_rle

coco = pytest.importorskip("pycocotools.mask")
MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(MASKS)
@settings(max_examples=200, deadline=None)
def test_as_pycocotools(mask):
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = encode_rle(mask)
    assert (ours["size"], ours["counts"].encode()) == (theirs["size"], theirs["counts"])
    assert np.array_equal(decode_rle(theirs), mask)
    assert np.array_equal(decode_rle(ours), mask)


def test_long_runs_and_bytes():
    mask = np.zeros((700, 900), bool)
    mask[100:600, 3:880] = True
    mask[650, 400] = True
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask)["counts"].encode() == theirs["counts"]
    assert np.array_equal(decode_rle(theirs), mask)


def test_list_by_hand():
    # Columns from the top: 2 outside, 3 inside, 1 outside.
    mask = decode_rle({"size": [2, 3], "counts": [2, 3, 1]})
    assert mask.tolist() == [[False, True, True], [False, True, False]]
    assert decode_rle({"size": [0, 4], "counts": []}).shape == (0, 4)
    assert decode_rle({"size": [1, 2], "counts": [0, 2]}).all()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ({"counts": [1]}, r"^size: expected height and width, got None$"),
        ({"size": [2], "counts": [2]}, r"^size: expected height and width, got \[2\]$"),
        ({"size": [2, -1], "counts": []}, r"^size: expected height and width, got \[2, -1\]$"),
        ({"size": [2, 2]}, r"^counts: expected whole numbers or their text, got None$"),
        ({"size": [2, 2], "counts": [1.5]}, r"^counts: expected whole numbers or their text"),
        ({"size": [2, 2], "counts": [3]}, r"^counts: expected runs of 2 × 2 pixels, got 3 in 1"),
        ({"size": [2, 2], "counts": [5, -1]}, r"^counts: expected runs of 2 × 2 pixels, got 4"),
        ({"size": [2, 2], "counts": "~"}, r"^counts: expected signs from '0' to 'o', got '~'$"),
        ({"size": [2, 2], "counts": "P"}, r"^counts: expected a whole text, got one that is cut"),
    ],
)
def test_errors(code, message):
    with pytest.raises(ValueError, match=message):
        decode_rle(code)


def test_errors_of_masks():
    with pytest.raises(ValueError, match=r"^mask: expected \(h, w\) bool, got uint8 \(2, 2\)$"):
        encode_rle(np.zeros((2, 2), np.uint8))
