from itertools import pairwise

import torch

from setokim.vlm.token_order import follow, pictures_before

IMAGE, START = 7, 8


def test_pictures_before():
    ids = torch.tensor([[7, 1, 8, 7, 8, 7], [7, 2, 8, 3, 4, 8], [8, 7, 2, 7, 7, 5]])
    # The first of a row follows none, and neither does one that is given.
    found = pictures_before(ids, IMAGE, START)
    assert found.tolist() == [-1, 0, 1, -1, -1, -1, -1]


def test_tokens_come_as_what_they_are_like():
    before = torch.tensor([[0.0, 0], [5, 0], [0, 5]])
    after = torch.tensor([[0.1, 5], [0.1, 0], [9, 0], [4.9, 0]])
    alone = torch.tensor([[3.0, 3], [0, 0]])
    tokens = torch.cat([before, after, alone])
    offsets = torch.tensor([0, 3, 7, 9], dtype=torch.int32)
    order = follow(tokens, offsets, torch.tensor([-1, 0, -1]), (1, 1))
    # Two are most like the second, and keep their order.
    assert order.tolist() == [0, 1, 2, 4, 5, 6, 3, 7, 8]
    assert follow(tokens, offsets, torch.tensor([-1, -1, -1]), (1, 1)).tolist() == list(range(9))
    assert follow(tokens[:0], offsets[:1], torch.zeros(0, dtype=torch.int64), (1, 1)).tolist() == []


def test_blocks_count_the_same():
    # Nearer in three of four channels, but those are one block.
    before = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 3]])
    after = torch.tensor([[0.9, 0.9, 0.9, 0.9], [0, 0, 0, 2.9]])
    offsets = torch.tensor([0, 2, 4], dtype=torch.int32)
    order = follow(torch.cat([before, after]), offsets, torch.tensor([-1, 0]), (3, 1))
    assert order.tolist() == [0, 1, 2, 3]
    order = follow(torch.cat([before, after]), offsets, torch.tensor([-1, 0]), (1, 3))
    assert order.tolist() == [0, 1, 2, 3]


def test_it_permutes_within_pictures():
    torch.manual_seed(0)
    lengths = torch.tensor([3, 5, 1, 6, 4])
    offsets = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    tokens, before = torch.randn(int(lengths.sum()), 3), torch.tensor([-1, 0, 1, -1, 3])
    order = follow(tokens, offsets, before, (2, 1))
    assert order.sort().values.tolist() == list(range(len(tokens)))
    for picture, (start, end) in enumerate(pairwise(offsets.tolist())):
        own = order[start:end]
        assert sorted(own.tolist()) == list(range(start, end))
        if before[picture] < 0:
            continue
        leader = tokens[offsets[before[picture]] : offsets[before[picture] + 1]]
        scale = torch.tensor([2.0, 2, 1]).sqrt()
        nearest = torch.cdist(tokens[own] / scale, leader / scale).argmin(1)
        assert nearest.tolist() == sorted(nearest.tolist())
