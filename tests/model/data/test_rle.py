import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from setokim.data.rle import MAX_PIXELS, decode_rle, decode_segmentation, encode_rle

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
        ({"size": [2, 2], "counts": "~"}, r"^counts: expected text of '0' to 'o', got '~'$"),
        ({"size": [2, 2], "counts": "P"}, r"^counts: expected a complete text, got a truncated"),
        ({"size": [2, 2], "counts": "o" * 10**6}, r"^counts: expected runs below 2\^40, got more"),
        ({"size": [2, 2], "counts": [2**70, 4 - 2**70]}, r"^counts: expected runs of 2 × 2 pixels"),
        ({"size": [2, 2], "counts": [True, 3]}, r"^counts: expected whole numbers or their text"),
        ({"size": [True, 2], "counts": [2]}, r"^size: expected height and width, got \[True, 2\]$"),
        (
            {"size": [10**5] * 2, "counts": [10**10]},
            r"^size: expected at most 178956970 pixels, go",
        ),
        ({"size": [2**70, 1], "counts": [2**70]}, r"^size: expected at most 178956970 pixels, got"),
    ],
)
def test_errors(code, message):
    with pytest.raises(ValueError, match=message):
        decode_rle(code)


def test_errors_of_masks():
    with pytest.raises(ValueError, match=r"^mask: expected \(h, w\) bool, got uint8 \(2, 2\)$"):
        encode_rle(np.zeros((2, 2), np.uint8))


def test_sizes_are_compared_before_anything_is_decoded():
    code = {"size": [3, 2], "counts": "o" * 10**6}
    with pytest.raises(ValueError, match=r"^size: expected the image's \(2, 3\), got \(3, 2\)$"):
        decode_rle(code, (2, 3))
    with pytest.raises(ValueError, match=r"^size: expected the image's \(2, 3\), got \(3, 2\)$"):
        decode_segmentation(code, (2, 3))
    assert MAX_PIXELS == 2 * 89478485  # PIL's own limit


SQUARE = [1, 1, 5, 1, 5, 4, 1, 4]


def test_polygons_as_pycocotools():
    mask = decode_segmentation([SQUARE], (6, 8))
    assert mask[1:4, 1:5].all() and mask.sum() == 12
    theirs = coco.merge(coco.frPyObjects([SQUARE], 6, 8))
    assert encode_rle(mask)["counts"].encode() == theirs["counts"]
    # Corners a little outside are of real files.
    outside = [-3.5, -2, 9, -2, 9, 7.5, -3.5, 7.5]
    assert decode_segmentation([outside], (6, 8)).all()


@pytest.mark.parametrize("bad", [[], [2, 2], [2, 2, 4, 4], [3, 3, 3, 3, 3, 3], [1, 1, 2, 2, 1, 1]])
def test_polygons_that_enclose_nothing_are_dropped(bad):
    good = decode_segmentation([SQUARE], (6, 8))
    assert np.array_equal(decode_segmentation([bad, SQUARE, bad], (6, 8)), good)
    with pytest.raises(ValueError, match=r"^expected a polygon of three corners x, y, got "):
        decode_segmentation([bad], (6, 8))


ZIGZAG = [value for n in range(50_000) for value in (2000 * (n % 2), n % 2000)]


@pytest.mark.parametrize(
    ("polygon", "size", "message"),
    [
        ([0, 0, 1e9, 0, 1e9, 1e9], (6, 8), r"^expected corners near 8 × 6 pixels, got 1000000000"),
        ([0, 0, -1e300, 0, 4, 4], (6, 8), r"^expected corners near 8 × 6 pixels, got -1e\+300, 0$"),
        ([0, 0, 10**400, 0, 4, 4], (6, 8), r"^expected corners near 8 × 6 pixels, got 10000"),
        ([0, 0, 4, 13, 4, 4], (6, 8), r"^expected corners near 8 × 6 pixels, got 4, 13$"),
        ([0, 0, 4, float("nan"), 4, 4], (6, 8), r"^expected corners near .*, got 4, nan$"),
        ([0, 0, float("inf"), 4, 4, 4], (6, 8), r"^expected corners near .*, got inf, 4$"),
        ([0, 0, float("-inf"), 4, 4, 4], (6, 8), r"^expected corners near .*, got -inf, 4$"),
        (ZIGZAG, (2000, 2000), r"^expected a perimeter of at most 1000000 pixels, got 100000000$"),
        ([0, 0, 4, 4, 4], (6, 8), r"^expected corners x, y, got \[0, 0, 4, 4, 4\]$"),
        ([0, 0, 4, None, 4, 4], (6, 8), r"^expected corners x, y, got \[0, 0, 4, None"),
        ("polygon", (6, 8), r"^expected corners x, y, got 'polygon'$"),
        ([[0, 0]], (6, 8), r"^expected corners x, y, got \[\[0, 0\]\]$"),
    ],
)
def test_polygons_that_would_take_all_memory(polygon, size, message):
    with pytest.raises(ValueError, match=message):
        decode_segmentation([SQUARE, polygon], size)


def test_malformed_segmentations():
    for value in (None, [], "text", 3):
        with pytest.raises(ValueError, match=r"^expected polygons or run lengths, got "):
            decode_segmentation(value, (6, 8))
