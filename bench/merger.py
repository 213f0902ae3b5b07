"""Entry of the token merger: one call for all clusters of all images, against a loop."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import setok_kernels as sk
from setok_bench import work
from setok_bench.registry import Case, Entry, Implementation
from setok_bench.timing import Call
from setok_bench.work import Shape, Work

WIDTH, HEADS, INTRA, INTER = 256, 4, 2, 1


def loop_over_clusters(
    merger: nn.Module, features: Tensor, clusters: sk.Clusters, grid: tuple[int, int]
) -> Tensor:
    """Run `TokenMerger` without attention masks, one cluster and one image at a time.

    Args:
        merger: `setokim.tokenizer.merger.TokenMerger` with the weights.
        features: (B, N, D) features of the patches.
        clusters: clustering of the features.
        grid: (H, W) with H · W = N.

    Returns:
        (S, token_dim) concatenated tokens of all images.
    """
    from setokim.tokenizer.pos_embed import grid_positions, sincos_encoding
    from setokim.tokenizer.shapelets import encode_shapelets

    positions = grid_positions(*grid, features.device)
    position = sincos_encoding(positions, merger.width)
    tokens = []
    for b in range(features.shape[0]):
        x = merger.project_in(merger.norm_in(features[b])) + position
        rows, outlines, labels = [], [], clusters.labels[b]
        for row in range(clusters.num_rows):
            member = labels == row
            if not member.any():
                continue
            own = x[member][None]
            for block in merger.intra:
                own = block(own, _full_mask(own))
            weight = clusters.masks[b, row, member]
            weight = weight / weight.sum()
            mean = weight @ merger.norm_mean(own[0])
            spread = weight.new_zeros(labels.shape).masked_scatter(member, weight)
            outlines.append(encode_shapelets(spread[None, None], grid, merger.outline_dim)[0, 0])
            area = (member.sum() / labels.shape[0]).log()
            rows.append(merger.project_mean(torch.cat([mean, outlines[-1], area[None]])))
        t = torch.stack(rows)[None]
        for block in merger.inter:
            t = block(t, _full_mask(t))
        t = merger.project_out(merger.norm_out(t[0]))
        tokens.append(torch.cat([t, torch.stack(outlines)], -1))
    return torch.cat(tokens)


def _full_mask(x: Tensor) -> Tensor:
    return x.new_ones(1, 1, x.shape[1], dtype=torch.bool)


def _inputs(case: Case):
    from setokim.tokenizer.merger import TokenMerger

    s = case.shape
    torch.manual_seed(0)
    merger = TokenMerger(s.features, WIDTH, WIDTH, WIDTH // 2, HEADS, INTRA, INTER)
    merger = merger.to(case.device, s.dtype).requires_grad_(False)
    features = case.groups()
    clusters = sk.cluster_tokens(features, sk.ClusterConfig(k=s.k, max_clusters=s.clusters))
    return merger, features, clusters, (math.isqrt(s.tokens),) * 2


def make_block_diagonal(case: Case) -> Call:
    """Return a single call with a block-diagonal attention mask."""
    merger, *inputs = _inputs(case)

    def call():
        tokens, occupied = merger(*inputs)
        return tokens[occupied]

    return call


def make_loop(case: Case) -> Call:
    """Return a call of the loop over images and clusters."""
    inputs = _inputs(case)
    return lambda: loop_over_clusters(*inputs)


def check_tokens(case: Case, tokens: Tensor) -> None:
    """Check that call and loop agree, to 1e-5 in float32."""
    expected = loop_over_clusters(*_inputs(case))
    tolerance = 1e-5 if case.shape.dtype == torch.float32 else 2e-2
    error = (tokens.float() - expected.float()).abs().max()
    assert error <= tolerance, f"tokens: differ by {error:.3g} from the loop"


def merger_work(shape: Shape) -> Work:
    """Return the work of projections, MLPs and attention, for clusters of the mean size."""
    within = shape.tokens // shape.clusters
    flops = work.transformer(
        max(1, within),
        shape.images * shape.clusters,
        INTRA,
        WIDTH,
        4 * WIDTH,
        gated=False,
        causal=False,
    )
    flops += 2 * shape.total * shape.features * WIDTH
    masks = 4 * shape.total * (shape.clusters + 1)
    return Work(shape.input_bytes + masks, flops)


MERGER = Entry(
    "merger",
    merger_work,
    (
        Implementation("block_diagonal", make_block_diagonal, check_tokens, "ours"),
        Implementation("loop", make_loop, check_tokens, "yardstick"),
    ),
    yardstick="loop",
)
