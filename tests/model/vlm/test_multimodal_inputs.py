"""Positions of visual tokens against a loop over tokens, and the order of their tokens."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from setokim.vlm.multimodal_inputs import splice
from setokim.vlm.token_order import source_images, source_order

IMAGE, SEGMENT, IGNORED = 90, 91, -100
FIELDS = ("ids", "attention_mask", "labels", "visual", "image", "segment")
FILL = dict(zip(FIELDS, (0, 0, IGNORED, -1, -1, -1), strict=True))


def by_loop(ids, mask, labels, counts, max_length, side):
    """Return the fields of `Spliced`, built one position at a time."""
    rows, image, visual, segment = [], -1, 0, 0
    for row in range(len(ids)):
        positions, last = [], -1
        for i, kept, label in zip(ids[row], mask[row], labels[row], strict=True):
            if not kept:
                continue
            if i == IMAGE:
                image, last = image + 1, image + 1
                for _ in range(counts[image]):
                    positions.append((i, 1, label, visual, last, -1))
                    visual += 1
                continue
            index = -1
            if i == SEGMENT and label != IGNORED:
                index, segment = segment, segment + 1
            positions.append((i, 1, label, -1, last, index))
        rows.append(positions[:max_length])
    longest = max(map(len, rows))
    filling = tuple(FILL.values())
    for row in rows:
        padding = [filling] * (longest - len(row))
        row[:] = padding + row if side == "left" else row + padding
    return {
        name: torch.tensor([[position[n] for position in row] for row in rows], dtype=torch.int64)
        for n, name in enumerate(FIELDS)
    }


def random_batch(seed):
    """Return ragged rows with padding on a random side; some images have no token."""
    generator = torch.Generator().manual_seed(seed)

    def sample(high, *shape):
        return torch.randint(high, shape, generator=generator)

    rows, length = int(sample(4, 1)) + 1, int(sample(12, 1)) + 2
    ids = sample(80, rows, length) + 1
    kind = sample(8, rows, length)
    ids = ids.masked_fill(kind < 2, IMAGE).masked_fill(kind == 2, SEGMENT)
    labels = torch.where(sample(2, rows, length).bool(), ids, IGNORED)
    kept = sample(length, rows)[:, None] + 1
    column = torch.arange(length)
    if sample(2, 1):
        column = column.flip(0)
    mask = (column < kept).long()
    counts = sample(5, int(((ids == IMAGE) & mask.bool()).sum()))
    return ids, mask, labels, counts


def offsets(counts):
    return torch.cat([torch.zeros(1), torch.as_tensor(counts)]).cumsum(0).int()


def check(spliced, expected):
    for name in FIELDS:
        assert_close(getattr(spliced, name), expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_random_batches_equal_a_loop(side):
    empty_images = 0
    for seed in range(60):
        ids, mask, labels, counts = random_batch(seed)
        found = splice(ids, mask, labels, offsets(counts), IMAGE, SEGMENT, padding_side=side)
        lists = (ids.tolist(), mask.tolist(), labels.tolist(), counts.tolist())
        check(found, by_loop(*lists, None, side))
        empty_images += int((counts == 0).sum())
    assert empty_images > 20


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_equals_a_loop_or_is_an_error(side):
    outcomes = {"cut": 0, "halved": 0}
    for seed in range(60):
        ids, mask, labels, counts = random_batch(seed)
        lists = (ids.tolist(), mask.tolist(), labels.tolist(), counts.tolist())
        whole = by_loop(*lists, None, "right")
        for limit in range(1, whole["ids"].shape[1]):
            before, after = whole["visual"][:, limit - 1], whole["visual"][:, limit]
            image = whole["image"]
            halved = (before >= 0) & (after >= 0) & (image[:, limit - 1] == image[:, limit])
            arguments = (ids, mask, labels, offsets(counts), IMAGE, SEGMENT, limit, side)
            if halved.any():
                row = int(halved.nonzero()[0])
                expected = f"max_length: expected a cut between images, got {limit}.*row {row}$"
                with pytest.raises(ValueError, match=expected):
                    splice(*arguments)
            else:
                check(splice(*arguments), by_loop(*lists, limit, side))
            outcomes["halved" if halved.any() else "cut"] += 1
    assert min(outcomes.values()) > 20


def test_splice_by_hand():
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
    trained = [[IGNORED] * 4 + [SEGMENT, 7], [IMAGE, SEGMENT, 8] + [IGNORED] * 3]
    assert found.labels.tolist() == trained
    assert found.positions().tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 2, 2]]


def test_without_images_or_labels():
    ids = torch.tensor([[3, SEGMENT, 4]])
    found = splice(ids, torch.ones_like(ids), None, offsets([]), IMAGE, SEGMENT)
    assert found.ids.tolist() == ids.tolist()
    assert found.labels.tolist() == [[IGNORED] * 3]
    for name in ("visual", "image", "segment"):
        assert getattr(found, name).tolist() == [[-1] * 3]


@pytest.mark.parametrize("counts", [[], [1], [1, 1, 1]])
def test_images_must_match_their_ids(counts):
    # The third `<image>` is in the padding and does not count.
    ids = torch.tensor([[IMAGE, 3, IMAGE, IMAGE]])
    mask = torch.tensor([[1, 1, 1, 0]])
    with pytest.raises(ValueError, match=rf"\b{len(counts)}\b.*\b2\b|\b2\b.*\b{len(counts)}\b"):
        splice(ids, mask, None, offsets(counts), IMAGE, SEGMENT)


def test_source_images():
    image, start = 7, 8
    ids = torch.tensor([[7, 1, 8, 7, 8, 7], [7, 2, 8, 3, 4, 8], [8, 7, 2, 7, 7, 5]])
    # The first image of a row has no source, and neither has an image of a prompt.
    found = source_images(ids, image, start)
    assert found.tolist() == [-1, 0, 1, -1, -1, -1, -1]


def test_tokens_take_the_rank_of_their_nearest_source_token():
    source = torch.tensor([[0.0, 0], [5, 0], [0, 5]])
    edited = torch.tensor([[0.1, 5], [0.1, 0], [9, 0], [4.9, 0]])
    alone = torch.tensor([[3.0, 3], [0, 0]])
    tokens = torch.cat([source, edited, alone])
    cu_seqlens = torch.tensor([0, 3, 7, 9], dtype=torch.int32)
    order = source_order(tokens, cu_seqlens, torch.tensor([-1, 0, -1]), (1, 1))
    # Two tokens are nearest to the second source token and keep their order.
    assert order.tolist() == [0, 1, 2, 4, 5, 6, 3, 7, 8]
    assert source_order(tokens, cu_seqlens, torch.tensor([-1, -1, -1]), (1, 1)).tolist() == list(
        range(9)
    )
    assert (
        source_order(tokens[:0], cu_seqlens[:1], torch.zeros(0, dtype=torch.int64), (1, 1)).tolist()
        == []
    )


def test_blocks_weigh_the_same_in_the_distance():
    # The first token is closer to source token 1 in three of four channels, which are one block.
    source = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 3]])
    edited = torch.tensor([[0.9, 0.9, 0.9, 0.9], [0, 0, 0, 2.9]])
    cu_seqlens = torch.tensor([0, 2, 4], dtype=torch.int32)
    order = source_order(torch.cat([source, edited]), cu_seqlens, torch.tensor([-1, 0]), (3, 1))
    assert order.tolist() == [0, 1, 2, 3]
    order = source_order(torch.cat([source, edited]), cu_seqlens, torch.tensor([-1, 0]), (1, 3))
    assert order.tolist() == [0, 1, 2, 3]


def test_source_order_permutes_within_images():
    torch.manual_seed(0)
    lengths = torch.tensor([3, 5, 1, 6, 4])
    cu_seqlens = offsets(lengths)
    tokens, sources = torch.randn(int(lengths.sum()), 3), torch.tensor([-1, 0, 1, -1, 3])
    order = source_order(tokens, cu_seqlens, sources, (2, 1))
    assert order.sort().values.tolist() == list(range(len(tokens)))
    for image, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        own = order[start:end]
        assert sorted(own.tolist()) == list(range(start, end))
        if sources[image] < 0:
            continue
        start, end = cu_seqlens[sources[image] :][:2]
        source = tokens[start:end]
        scale = torch.tensor([2.0, 2, 1]).sqrt()
        nearest = torch.cdist(tokens[own] / scale, source / scale).argmin(1)
        assert nearest.tolist() == sorted(nearest.tolist())
