"""Orders of an image's tokens, their sources, and tokens that repeat one of the source."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from helpers.tiny_setokim import build, picture
from setokim.tokenizer.token_statistics import ChannelUnits
from setokim.vlm.token_order import (
    largest_first,
    nearest_source,
    pack_in_order,
    repeated_tokens,
)


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


@pytest.mark.parametrize("seed", range(5))
def test_largest_first_by_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (7,), generator=generator).tolist()
    cu_seqlens = offsets(lengths)
    # Few different sizes, so that several tokens of an image are the largest.
    sizes = torch.randint(1, 4, (sum(lengths),), generator=generator)
    expected = []
    for start, end in pairwise(cu_seqlens.tolist()):
        own = list(range(start, end))
        if own:
            best = max(own, key=lambda i: (int(sizes[i]), -i))
            own = [best, *(i for i in own if i != best)]
        expected += own
    assert largest_first(sizes, cu_seqlens).tolist() == expected


def test_the_background_comes_first():
    model, _ = build()
    visual = model.setok.tokenize([picture(seed) for seed in range(4)])
    raster, ordered = visual.pack("raster"), pack_in_order(visual, "background")
    assert torch.equal(ordered.cu_seqlens, raster.cu_seqlens)
    for start, end in pairwise(raster.cu_seqlens.tolist()):
        rows = raster.rows[start:end].tolist()
        first = rows[int(raster.sizes[start:end].argmax())]
        assert ordered.rows[start:end].tolist() == [first, *(r for r in rows if r != first)]
    pairs = [(int(i), int(r)) for i, r in zip(ordered.images, ordered.rows, strict=True)]
    tokens = torch.stack([visual.tokens[i, r] for i, r in pairs])
    assert torch.equal(ordered.tokens, tokens)


def test_nearest_source_by_loop():
    torch.manual_seed(0)
    lengths = [3, 4, 0, 2, 1]
    sources = torch.tensor([-1, 0, 1, 2, 3])
    cu_seqlens, blocks = offsets(lengths), (2, 1)
    tokens = torch.randn(sum(lengths), 3)
    nearest, distance = nearest_source(tokens, cu_seqlens, sources, blocks)
    bounds = list(pairwise(cu_seqlens.tolist()))
    for image, (start, end) in enumerate(bounds):
        for i in range(start, end):
            a, b = bounds[sources[image]] if sources[image] >= 0 else (0, 0)
            if a == b:
                assert nearest[i] == -1 and distance[i] == torch.inf
                continue
            parts = [(tokens[i] - tokens[j]).square().split(blocks) for j in range(a, b)]
            own = torch.stack([torch.stack([p.mean() for p in q]).mean().sqrt() for q in parts])
            assert int(nearest[i]) == a + int(own.argmin())
            assert_close(distance[i], own.min())


def test_a_token_repeats_one_of_the_source_whatever_its_shape():
    units = ChannelUnits((2, 2, 1, 3))
    model, _ = build()
    packed = model.setok.tokenize([picture(0), picture(0)]).pack()
    width, number = 8, len(packed.tokens) // 2
    assert number > 1
    torch.manual_seed(0)
    source = 3 * torch.randn(number, width)
    edited = source.clone()
    edited[:, -3:] = 5  # shape
    edited[0, 0] += 1  # content: a root mean square of 0.7 in one of three blocks
    packed = type(packed)(**{**vars(packed), "tokens": torch.cat([source, edited])})
    found = repeated_tokens(packed, units, torch.tensor([-1, 0]))
    assert found.tolist() == [-1] * number + [-1, *range(1, number)]
