"""pack on results small enough to see what must come out, and at the edges of its numbers."""

import dataclasses
from fractions import Fraction

import pytest
import torch

import setok_kernels as sk
from setok_kernels import testing

# Their cases are many, and none is about what an interpreted kernel does.
pytestmark = pytest.mark.backends("reference", "cpp")


def test_a_small_picture_by_hand():
    # Image 0 is 0 0 1 above 2 1 1, image 1 is a column of two.
    out = sk.HardClusters(
        labels=torch.tensor([0, 0, 1, 2, 1, 1, 1, 0]),
        centres=torch.tensor([[1, 5, 3], [1, 0, -1]]),
        counts=torch.tensor([3, 2]),
        cu_seqlens=torch.tensor([0, 6, 8], dtype=torch.int32),
        max_seqlen=6,
    )
    tokens = torch.arange(6.0).view(2, 3, 1)
    packed = out.pack(tokens, order="raster", grids=[(2, 3), (2, 1)])
    third = 5 / 3
    assert packed.rows.tolist() == [0, 2, 1, 1, 0]
    assert packed.images.tolist() == [0, 0, 0, 1, 1]
    assert packed.tokens.flatten().tolist() == [0, 2, 1, 4, 3]
    assert packed.sizes.tolist() == [2, 1, 3, 1, 1]
    assert packed.seeds.tolist() == [1, 3, 5, 0, 1]
    assert packed.seed_positions.tolist() == [[0, 1], [1, 0], [1, 2], [0, 0], [1, 0]]
    expected = torch.tensor([[0, 0.5], [1, 0], [2 / 3, third], [0, 0], [1, 0]])
    assert torch.equal(packed.centroids, expected)
    assert out.pack(tokens, order="size").rows.tolist() == [1, 0, 2, 0, 1]
    assert packed.max_seqlen == 3 and packed.num_rows == 3


def test_raster_order_goes_by_the_line_that_holds_the_centroid():
    # Rows 1, 2 and 3 have y = 1.5, 2.5 and 2.5, all in line 2 (halves to even), and x = 2, 1 and 1.
    labels = torch.full((4, 3), -1)
    labels[0, 1] = labels[1, 1] = 0
    labels[1, 2] = labels[2, 2] = 1
    labels[2, 1] = labels[3, 1] = 2
    labels[2, 0] = labels[3, 2] = 3
    out = sk.HardClusters(
        labels=labels.view(1, 12),
        centres=torch.tensor([[1, 5, 7, 8]]),
        counts=torch.tensor([4]),
        grid=(4, 3),
    )
    packed = out.pack(torch.zeros(1, 4, 1), order="raster")
    assert packed.centroids.tolist() == [[0.5, 1], [2.5, 1], [2.5, 1], [1.5, 2]]
    assert packed.rows.tolist() == [0, 2, 3, 1], "equal places stay in the order of the rows"
    swapped = dataclasses.replace(out, labels=torch.tensor([3, 2, 1, 0, -1])[out.labels])
    assert swapped.pack(torch.zeros(1, 4, 1), order="raster").rows.tolist() == [3, 0, 1, 2]


def test_rows_without_members_are_where_their_seed_is():
    out = sk.cluster_tokens(testing.planted_clusters(1, 12, 3, 3)[0].view(1, 3, 4, 3))
    count = int(out.counts)
    out = dataclasses.replace(out, labels=torch.full_like(out.labels, -1))
    packed = out.pack(torch.zeros(1, out.num_rows, 1), drop_empty=False)
    assert count > 1 and packed.rows.tolist() == list(range(count + 1))
    assert (packed.sizes == 0).all() and torch.equal(packed.centroids, packed.seed_positions)
    seeds = out.decisions.seeds[0, :count].tolist()
    assert packed.seed_positions.tolist() == [*(list(divmod(s, 4)) for s in seeds), [-1, -1]]


def test_the_residual_of_cut_decisions_has_no_seed(backend):
    """Counts may be lower than the decisions' own list of seeds."""
    x = testing.planted_clusters(2, 12, 3, 4)[0]
    out = sk.cluster_tokens(x, backend=backend)
    fewer = dataclasses.replace(out.decisions, counts=out.counts - 1)
    again = sk.cluster_tokens(x, decisions=fewer, backend=backend)
    assert (again.centres.gather(1, again.counts[:, None]) == -1).all(), "a replay forgets them"
    again = dataclasses.replace(again, decisions=fewer)
    packed = again.pack(torch.zeros(2, again.num_rows, 1), drop_empty=False)
    assert (again.centres.gather(1, again.counts[:, None]) >= 0).all(), "a seed is left over"
    assert torch.equal(packed.seeds < 0, packed.rows == again.counts[packed.images])


def test_centroids_are_exact_in_long_lines():
    """The sums exceed 2**24, where float32 stops counting."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 9, (1, 40000), generator=generator)
    centres = torch.arange(9)[None]
    out = sk.HardClusters(labels=labels, centres=centres, counts=torch.tensor([9]))
    members = [(labels[0] == row).nonzero()[:, 0] for row in range(9)]
    for grids, width in ((None, 40000), ([(2, 20000)], 20000)):
        packed = out.pack(torch.zeros(1, 9, 1), grids=grids)
        for row, tokens in enumerate(members):
            sums = int((tokens // width).sum()), int((tokens % width).sum())
            mean = [float(Fraction(total, len(tokens))) for total in sums]
            assert torch.equal(packed.centroids[row], torch.tensor(mean))


def test_two_names_and_all_fields():
    x = testing.planted_clusters(2, 9, 3, 3)[0]
    out = sk.cluster_tokens(x)
    packed = out.pack(sk.merge_tokens(x, out))
    tokens, cu_seqlens = packed
    assert tokens is packed.tokens and cu_seqlens is packed.cu_seqlens
    assert isinstance(packed, sk.Packed)
    with pytest.raises(dataclasses.FrozenInstanceError):
        packed.max_seqlen = 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_to_a_fixed_width(side):
    """A bound above all rows, as a static shape needs it."""
    out = sk.HardClusters(
        labels=torch.tensor([[0, 0], [1, 0], [-1, -1]]),
        centres=torch.tensor([[0, -1], [1, 0], [-1, -1]]),
        counts=torch.tensor([1, 2, 0]),
    )
    packed = out.pack(torch.arange(1.0, 7).view(3, 2, 1))
    padded, mask = dataclasses.replace(packed, max_seqlen=5).padded(side=side)
    rows = [[1.0], [3.0, 4.0], []]
    for got, keep, row in zip(padded[:, :, 0].tolist(), mask.tolist(), rows, strict=True):
        zeros = [0.0] * (5 - len(row))
        assert got == ([*row, *zeros] if side == "right" else [*zeros, *row])
        assert keep == [value != 0 for value in got]
