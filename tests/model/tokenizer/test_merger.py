"""Attention within clusters, positions and the merger, against loops over clusters."""

import dataclasses
import math

import pytest
import torch

import setok_kernels as sk
from setok_bench.merger import loop_over_clusters
from setok_kernels import testing
from setokim.tokenizer.attention import Block, SetAttention, SetsBySize, same_cluster
from setokim.tokenizer.merger import TokenMerger
from setokim.tokenizer.pos_embed import grid_positions, sincos_encoding

GRID = (5, 6)


@pytest.fixture
def clustered():
    torch.manual_seed(0)
    x, _ = testing.planted_clusters(3, 30, 12, 5, noise=0.2)
    return x, sk.cluster_tokens(x, sk.ClusterConfig(k=3, max_clusters=7))


@pytest.fixture
def merger():
    torch.manual_seed(1)
    return TokenMerger(12, 16, 10, 6, heads=4, intra_layers=2, inter_layers=1)


def test_block_diagonal_attention_equals_a_loop_over_clusters(merger, clustered):
    features, clusters = clustered
    tokens, occupied = merger(features, clusters, GRID)
    expected = loop_over_clusters(merger, features, clusters, GRID)
    assert occupied.sum() == expected.shape[0] > 3 * 3
    torch.testing.assert_close(tokens[occupied], expected, atol=1e-5, rtol=0)
    assert torch.equal(occupied, clusters.occupied())
    assert (tokens[~occupied] == 0).all()


def test_gradient_reaches_the_features_and_the_clustering(merger, clustered):
    features, _ = clustered
    features = features.requires_grad_()
    config = sk.ClusterConfig(k=3, max_clusters=7, bandwidth=torch.tensor(0.5, requires_grad=True))
    clusters = sk.cluster_tokens(features, config)
    tokens, _ = merger(features, clusters, GRID)
    weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad((tokens * weight).sum(), [features, config.bandwidth])
    assert grads[0].isfinite().all() and (grads[0].abs().sum(-1) > 0).all()
    assert grads[1].abs() > 0


def test_an_image_does_not_see_another(merger, clustered):
    features, clusters = clustered
    together, _ = merger(features, clusters, GRID)
    alone, _ = merger(
        features[1:2],
        sk.cluster_tokens(features[1:2], sk.ClusterConfig(k=3, max_clusters=7)),
        GRID,
    )
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


def test_weights_sum_to_one_and_follow_the_masks(clustered):
    _, clusters = clustered
    share = TokenMerger.membership(clusters)
    used = clusters.occupied()
    torch.testing.assert_close(share.sum(-1)[used], torch.ones(int(used.sum())))
    assert (share[~used] == 0).all()
    row = int(clusters.labels[0, 0])
    member = clusters.labels[0] == row
    expected = clusters.masks[0, row] * member / clusters.masks[0, row][member].sum()
    torch.testing.assert_close(share[0, row], expected)


def test_queries_without_context_get_0_and_have_a_gradient():
    torch.manual_seed(0)
    attention = SetAttention(8, 2)
    x = torch.randn(1, 3, 8, requires_grad=True)
    allowed = torch.tensor([[[True, True, False], [False] * 3, [False, False, True]]])
    out = attention(x, x, allowed)
    torch.testing.assert_close(out[0, 1], attention.out.bias)
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("strays", [0, 7])
def test_attention_by_size_equals_attention_by_mask(merger, clustered, strays):
    """Values and gradients, where some tokens are in no cluster, too."""
    merger, x = merger.double(), torch.randn(3, 30, 16, dtype=torch.float64, requires_grad=True)
    labels = clustered[1].labels.clone()
    labels[1, :strays] = -1
    clusters = dataclasses.replace(clustered[1], labels=labels)
    found = [merger._within(x, clusters, by_size) for by_size in (True, False)]
    found = [y[labels >= 0] for y in found]
    torch.testing.assert_close(*found, atol=1e-12, rtol=0)
    weight = torch.randn(found[0].shape, dtype=torch.float64)
    leaves = [x, *merger.intra.parameters()]
    grads = [torch.autograd.grad((y * weight).sum(), leaves) for y in found]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=1e-9)
    assert all(grad.any() for grad in grads[0])


class TestSetsBySize:
    # Sets of 4, 1 and 1 in the first image; of 2 and 3 in the second, and one token in none.
    LABELS = torch.tensor([[2, 0, 2, 2, 2, 1], [1, 1, -1, 0, 0, 1]])

    def test_by_hand(self):
        sets = SetsBySize.of(self.LABELS, 3)
        assert sets.tokens.tolist() == [1, 5, 9, 10, 6, 7, 11, 0, 2, 3, 4]
        assert [group.tolist() for group in sets.present] == [
            [[True], [True]],
            [[True, True]],
            [[True, True, True]],
            [[True, True, True, True]],
        ]
        assert sets.positions.tolist() == [8, 1, 9, 10, 11, 2, 5, 6, 0, 3, 4, 7]

    def test_a_group_is_padded_with_its_own_tokens(self):
        # The tenth and the eleventh power of 1.25 are 9.3 and 11.6.
        labels = torch.tensor([[0] * 10 + [1] * 11])
        sets = SetsBySize.of(labels, 2)
        assert [tuple(group.shape) for group in sets.present] == [(2, 11)]
        assert sets.tokens.tolist() == [*range(10), 0, *range(10, 21)]
        assert sets.present[0].sum(1).tolist() == [10, 11]

    def test_there_and_back(self):
        sets = SetsBySize.of(self.LABELS, 3)
        x = torch.randn(2, 6, 5)
        expected = x.masked_fill(self.LABELS[..., None] < 0, 0)
        assert torch.equal(sets.take_back(sets.lay_out(x)), expected)

    @pytest.mark.parametrize("shape", [(0, 4), (2, 0), (2, 4)])
    def test_nothing_in_any_set(self, shape):
        sets = SetsBySize.of(torch.full(shape, -1), 3)
        block = Block(8, 2)
        x = block(sets.lay_out(torch.randn(*shape, 8)), sets)
        assert torch.equal(sets.take_back(x), torch.zeros(*shape, 8))

    def test_little_padding(self):
        labels = torch.randint(40, (8, 900), generator=torch.Generator().manual_seed(0)).square()
        sets = SetsBySize.of(labels // 40, 40)
        assert sets.tokens.shape[0] < 1.25 * labels.numel() and len(sets.present) < 20

    def test_non_finite_values_stay_in_their_set(self):
        torch.manual_seed(0)
        block, x = Block(8, 2), torch.randn(2, 6, 8)
        x[0, 5] = torch.nan
        sets = SetsBySize.of(self.LABELS, 3)
        found = sets.take_back(block(sets.lay_out(x), sets)).isfinite().all(-1)
        assert found.tolist() == [[True] * 5 + [False], [True] * 6]


def test_weights_are_those_of_the_attention():
    torch.manual_seed(0)
    attention = SetAttention(8, 2, 6)
    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    weights = attention.weights(x, context)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))
    value = attention.key_value(context)[..., 8:].unflatten(-1, (2, 4)).transpose(1, 2)
    expected = attention.out((weights @ value).transpose(1, 2).flatten(-2))
    everything = torch.ones(1, 1, 5, dtype=torch.bool)
    torch.testing.assert_close(attention(x, context, everything), expected, atol=1e-6, rtol=0)


def test_a_layer_gives_its_weights():
    torch.manual_seed(0)
    block = Block(8, 2, context_width=6)
    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    sees = [torch.ones(1, 1, n, dtype=torch.bool) for n in (3, 5)]
    out, weights = block(x, sees[0], context, sees[1], return_weights=True)
    assert torch.equal(out, block(x, sees[0], context, sees[1]))
    assert torch.equal(weights, block.attend_cross.weights(block.norm_cross(x), context))


def test_same_cluster_by_hand():
    allowed = same_cluster(torch.tensor([[0, 1, 0, -1]]))
    expected = [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert allowed[0].int().tolist() == expected


def test_cross_attention_is_limited_to_allowed_tokens():
    torch.manual_seed(0)
    block = Block(8, 2, context_width=6)
    x, context = torch.randn(1, 4, 8), torch.randn(1, 5, 6)
    present = torch.tensor([[[True, True, True, False, False]]])
    everything = torch.ones(1, 1, 4, dtype=torch.bool)
    with_rest = block(x, everything, context, present)
    context[:, 3:] = 100.0
    assert torch.equal(with_rest, block(x, everything, context, present))


class TestPositions:
    def test_grid_by_hand(self):
        expected = [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
        assert grid_positions(2, 2).tolist() == expected

    def test_encoding_by_hand(self):
        y, x = 0.25, 0.5
        code = sincos_encoding(torch.tensor([y, x]), 8, periods=4)
        # Half a period over the image, and four periods.
        angles = [[math.pi * p * f for f in (1, 8)] for p in (y, x)]
        expected = [*map(math.sin, angles[0]), *map(math.cos, angles[0])]
        expected += [*map(math.sin, angles[1]), *map(math.cos, angles[1])]
        torch.testing.assert_close(code, torch.tensor(expected), atol=1e-5, rtol=0)

    def test_positions_differ(self):
        code = sincos_encoding(grid_positions(27, 27), 64)
        distance = torch.cdist(code, code) + 100 * torch.eye(729)
        assert distance.min() > 0.5

    def test_width(self):
        with pytest.raises(ValueError, match="width: expected a multiple of 4, got 10"):
            sincos_encoding(torch.zeros(2), 10)


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="heads: expected a divisor of the width 10, got 4"):
        SetAttention(10, 4)
