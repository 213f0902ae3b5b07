"""The pairs of the gradient's graph, in the interpreter, against lists of Python."""

import os
from collections import Counter

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
if os.environ["TRITON_INTERPRET"] != "1":
    pytest.skip("these run in the interpreter", allow_module_level=True)

from helpers import interpreter
from setok_triton.adjacency import adjacency
from setok_triton.chunk import Chunk
from setok_triton.common import Clusters

interpreter.repair()
pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
NONE = 2**31 - 1


def graph(sizes, k, seed, repeats=False):
    """Random neighbours and targets of delta of images, some absent; weights are integers."""
    generator = torch.Generator().manual_seed(seed)
    total, offsets = sum(sizes), torch.tensor([0, *sizes]).cumsum(0)
    knn, target = torch.full((total, k), -1), torch.full((total,), -1, dtype=torch.int32)
    for begin, size in zip(offsets.tolist(), sizes, strict=False):
        for token in range(begin, begin + size):
            if token % 7 == 3:
                continue
            # A hub, then others, with the token itself among them.
            near = torch.randint(size, (k,), generator=generator)
            if not repeats:
                near = torch.randperm(size, generator=generator)[:k]
                near[0] = 0 if 0 not in near[1:] else near[0]
            knn[token, : len(near)] = near
            target[token] = torch.randint(size, (1,), generator=generator)
    ok = (torch.arange(total) % 7 != 3).to(torch.int8)
    return offsets, ok, knn, target


def pairs_by_hand(begin, size, ok, knn, target, near, far):
    """The sum of weights of each ordered pair of an image, both ends."""
    weights = Counter()
    for i in range(size):
        if not ok[begin + i]:
            continue
        edges = [(j, near[begin + i]) for j in knn[begin + i].tolist() if j >= 0]
        edges.append((target[begin + i].item(), far[begin + i]))
        for j, weight in edges:
            if i != j:
                weights[i, j] += weight
                weights[j, i] += weight
    return weights


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize(("sizes", "k"), [([30, 0, 1, 12], 3), ([1100], 2), ([40], 17)], ids=str)
def test_pairs(sizes, k, repeats):
    """Each pair has its whole weight at both ends, once unless a list repeats it."""
    offsets, ok, knn, target = graph(sizes, k, 0, repeats)
    total, images, one = sum(sizes), len(sizes), torch.ones(sum(sizes))
    found = (knn >= 0).sum(1).clamp(min=1)
    # The gradient of a neighbour's distance is -sigma rho grad / count: small integers.
    near = torch.arange(total) % 5 + 1
    far = torch.arange(total) % 3 + 1
    seeds = torch.full((images, 4), -1)
    seeds[0, 1:] = torch.tensor([2, 0, 2])
    out = Clusters(knn, target.long(), seeds, *[one] * 2, one, one, one)
    chunk = Chunk(ok, offsets, torch.ones(images), torch.ones(images), None, max(sizes))
    grads = (-(near * found).float(), far.float())
    edges, grad_importance = adjacency(chunk, out, target, grads, None, one, seeded=True)
    assert (grad_importance == 0).all()
    for begin, size in zip(offsets.tolist(), sizes, strict=False):
        image = slice(begin, begin + size)
        assert edges.p_order[image].sort().values.tolist() == list(range(size))
        got, parts = Counter(), []
        for token in range(size):
            own = edges.p_pairs[begin + token].tolist()
            first = begin * (k + 2) + edges.p_begin[begin + token].item()
            more = edges.p_entries[first : first + edges.p_degree[begin + token]].tolist()
            parts.append(more)
            for pair in own + more:
                weight = torch.tensor(pair >> 32, dtype=torch.int32).view(torch.float32).item()
                got[token, pair & 0xFFFFFFFF] += weight
            if not repeats:
                ends = [p & 0xFFFFFFFF for p in own + more if p >> 32]
                # An edge of delta to no neighbour stays by itself.
                ends = [
                    e for e in ends if target[begin + e] != token and e != target[begin + token]
                ]
                assert len(ends) == len(set(ends))
        want = pairs_by_hand(begin, size, ok, knn, target, near.tolist(), far.tolist())
        assert {p: w for p, w in got.items() if w} == dict(want)
        # Entries are in the order of the slots that they come from, whatever the schedule.
        for token, more in enumerate(parts):
            sources = [p & 0xFFFFFFFF for p in more]
            far_end = target[begin + token].item()
            assert [s for s in sources if s != far_end] == sorted(
                s for s in sources if s != far_end
            )
    assert edges.p_first[offsets[0] : offsets[0] + 3].tolist() == [2, NONE, 1]
    assert edges.p_next[0].tolist() == [NONE, 3, NONE, NONE]
    # The seeds come first, then the tokens by their number of entries, in classes.
    assert edges.p_order[:2].tolist() == [0, 2]
