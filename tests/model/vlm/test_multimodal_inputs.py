"""Places for visual tokens, against a loop over tokens."""

import pytest
import torch
from torch.testing import assert_close

from setokim.vlm.multimodal_inputs import splice

IMAGE, SEGMENT, IGNORED = 90, 91, -100
FIELDS = ("ids", "attention_mask", "labels", "visual", "image", "segment")
FILL = dict(zip(FIELDS, (0, 0, IGNORED, -1, -1, -1), strict=True))


def by_loop(ids, mask, labels, counts, most, side):
    """Rows of lists, one place at a time."""
    rows, image, visual, segment = [], -1, 0, 0
    for row in range(len(ids)):
        places, last = [], -1
        for i, kept, label in zip(ids[row], mask[row], labels[row], strict=True):
            if not kept:
                continue
            if i == IMAGE:
                image, last = image + 1, image + 1
                for _ in range(counts[image]):
                    places.append((i, 1, label, visual, last, -1))
                    visual += 1
                continue
            own = -1
            if i == SEGMENT and label != IGNORED:
                own, segment = segment, segment + 1
            places.append((i, 1, label, -1, last, own))
        rows.append(places[:most])
    longest = max(map(len, rows))
    filling = tuple(FILL.values())
    for row in rows:
        padding = [filling] * (longest - len(row))
        row[:] = padding + row if side == "left" else row + padding
    return {
        name: torch.tensor([[place[n] for place in row] for row in rows], dtype=torch.int64)
        for n, name in enumerate(FIELDS)
    }


def random_batch(seed):
    """Ragged rows with padding on a random side; some pictures have no token."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high, *shape):
        return torch.randint(high, shape, generator=generator)

    rows, length = int(draw(4, 1)) + 1, int(draw(12, 1)) + 2
    ids = draw(80, rows, length) + 1
    kind = draw(8, rows, length)
    ids = ids.masked_fill(kind < 2, IMAGE).masked_fill(kind == 2, SEGMENT)
    labels = torch.where(draw(2, rows, length).bool(), ids, IGNORED)
    kept = draw(length, rows)[:, None] + 1
    column = torch.arange(length)
    if draw(2, 1):
        column = column.flip(0)
    mask = (column < kept).long()
    counts = draw(5, int(((ids == IMAGE) & mask.bool()).sum()))
    return ids, mask, labels, counts


def offsets(counts):
    return torch.cat([torch.zeros(1), torch.as_tensor(counts)]).cumsum(0).int()


def check(spliced, expected):
    for name in FIELDS:
        assert_close(getattr(spliced, name), expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_random_batches_are_what_a_loop_makes(side):
    empty_pictures = 0
    for seed in range(60):
        ids, mask, labels, counts = random_batch(seed)
        found = splice(ids, mask, labels, offsets(counts), IMAGE, SEGMENT, padding_side=side)
        lists = (ids.tolist(), mask.tolist(), labels.tolist(), counts.tolist())
        check(found, by_loop(*lists, None, side))
        empty_pictures += int((counts == 0).sum())
    assert empty_pictures > 20


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_is_what_a_loop_makes_or_an_error(side):
    outcomes = {"cut": 0, "halved": 0}
    for seed in range(60):
        ids, mask, labels, counts = random_batch(seed)
        lists = (ids.tolist(), mask.tolist(), labels.tolist(), counts.tolist())
        whole = by_loop(*lists, None, "right")
        for most in range(1, whole["ids"].shape[1]):
            before, after = whole["visual"][:, most - 1], whole["visual"][:, most]
            image = whole["image"]
            halved = (before >= 0) & (after >= 0) & (image[:, most - 1] == image[:, most])
            arguments = (ids, mask, labels, offsets(counts), IMAGE, SEGMENT, most, side)
            if halved.any():
                row = int(halved.nonzero()[0])
                expected = f"max_length: expected a cut between pictures, got {most}.*row {row}$"
                with pytest.raises(ValueError, match=expected):
                    splice(*arguments)
            else:
                check(splice(*arguments), by_loop(*lists, most, side))
            outcomes["halved" if halved.any() else "cut"] += 1
    assert min(outcomes.values()) > 20


def test_by_hand():
    ids = torch.tensor([[5, IMAGE, 6, SEGMENT, 7], [IMAGE, IMAGE, SEGMENT, 8, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    labels = torch.full_like(ids, IGNORED)
    labels[0, 3:], labels[1, 1:4] = ids[0, 3:], ids[1, 1:4]
    found = splice(ids, mask, labels, offsets([2, 0, 1]), IMAGE, SEGMENT)
    assert found.ids.tolist() == [
        [5, IMAGE, IMAGE, 6, SEGMENT, 7],
        [IMAGE, SEGMENT, 8, 0, 0, 0],
    ]
    assert found.visual.tolist() == [[-1, 0, 1, -1, -1, -1], [2, -1, -1, -1, -1, -1]]
    assert found.image.tolist() == [[-1, 0, 0, 0, 0, 0], [2, 2, 2, -1, -1, -1]]
    assert found.segment.tolist() == [[-1, -1, -1, -1, 0, -1], [-1, 1, -1, -1, -1, -1]]
    assert found.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    learnt = [[IGNORED] * 4 + [SEGMENT, 7], [IMAGE, SEGMENT, 8] + [IGNORED] * 3]
    assert found.labels.tolist() == learnt
    assert found.positions().tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 2, 2]]


def test_without_pictures_or_labels():
    ids = torch.tensor([[3, SEGMENT, 4]])
    found = splice(ids, torch.ones_like(ids), None, offsets([]), IMAGE, SEGMENT)
    assert found.ids.tolist() == ids.tolist()
    assert found.labels.tolist() == [[IGNORED] * 3]
    for name in ("visual", "image", "segment"):
        assert getattr(found, name).tolist() == [[-1] * 3]


@pytest.mark.parametrize("counts", [[], [1], [1, 1, 1]])
def test_pictures_and_places_must_match(counts):
    # The third is in the padding, where none is read.
    ids = torch.tensor([[IMAGE, 3, IMAGE, IMAGE]])
    mask = torch.tensor([[1, 1, 1, 0]])
    with pytest.raises(ValueError, match=rf"\b{len(counts)}\b.*\b2\b|\b2\b.*\b{len(counts)}\b"):
        splice(ids, mask, None, offsets(counts), IMAGE, SEGMENT)
