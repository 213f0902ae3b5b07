"""Encoded images to fewer tokens: cluster the features, merge the projected ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from setok_kernels.functional import cluster_tokens, merge_tokens
from setok_kernels.integrations.transformers.options import Options


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoded:
    """Visual tokens of one call, in the order of their placeholders in the prompts.

    T is the number of placeholders of all images (or videos). A group is a set of tokens that are
    clustered together: an image, a tile, or one of the views of an image.

    Attributes:
        output: model output of the family's feature function.
        tokens: (T, D) projected features, as the language model reads them.
        features: (T, D') features that decide the clusters, e.g. those of the encoder.
        items: number of tokens of each item of `output.pooler_output`, which sum to T.
        groups: number of tokens of each group; with `layout` the sum counts only other tokens.
        layout: (T,) bool, True for tokens that are layout and not image, such as the embedding of
            a line break; None for none.
        lines: (T,) int64 line of each token, ascending; needed with `layout`. A layout token is
            kept if its line keeps a token.
        planes: further features by the name of their field of the output, each a list of (T, D)
            that are merged with the same clusters, such as DeepStack features.
    """

    output: Any
    tokens: Tensor
    features: Tensor
    items: list[int]
    groups: list[int]
    layout: Tensor | None = None
    lines: Tensor | None = None
    planes: Mapping[str, list[Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reduced:
    """Fewer visual tokens. S is the number of tokens kept.

    Attributes:
        keep: (T,) bool, True for the placeholders that stay: the seed of each cluster (for the
            residual, or where the seed has another label, the first token of the cluster) and the
            layout tokens of the lines that keep a token.
        tokens: (S, D) merged features of these placeholders.
        planes: merged planes of `Encoded.planes`, each (S, D).
        items: number of tokens kept of each item of `Encoded.items`.
    """

    keep: Tensor
    tokens: Tensor
    planes: dict[str, list[Tensor]]
    items: list[int]


def reduce_features(encoded: Encoded, options: Options) -> Reduced:
    """Cluster the tokens of each group in one call, and merge them.

    Waits once for the device, because the number of tokens is data.
    """
    layout = encoded.layout
    content = None if layout is None else (~layout).nonzero()[:, 0]
    features = encoded.features if options.features == "encoder" else encoded.tokens
    features = features if content is None else features[content]
    lengths = torch.tensor(encoded.groups, device=features.device)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    out = cluster_tokens(
        features,
        options.config,
        num_clusters=options.num_clusters,
        rate=options.rate,
        exact=options.exact,
        cu_seqlens=offsets.int(),
        max_seqlen=max(encoded.groups),
    )
    group = torch.arange(len(encoded.groups), device=features.device)
    # Rows of all groups are numbered through.
    row = group.repeat_interleave(lengths, output_size=features.shape[0])
    row = row * out.num_rows + out.labels  # (N,)
    chosen = _slots(row, out, offsets[:-1])  # (N,)

    if content is None:
        keep = chosen
    else:
        assert layout is not None and encoded.lines is not None
        keep = torch.zeros_like(layout).index_put((content,), chosen)
        held = keep.new_zeros(layout.shape[0]).index_put((encoded.lines[keep],), keep[keep])
        keep = keep | (layout & held[encoded.lines])
    kept = keep.nonzero()[:, 0]  # (S,)

    def merged(plane: Tensor) -> Tensor:
        source = plane if content is None else plane[content]
        rows = merge_tokens(source, out, options.merge).flatten(0, 1)
        if content is None:
            return rows.index_select(0, row[kept])
        assert layout is not None
        # Index among the tokens that are no layout; unused for those that are.
        index = ((~layout).cumsum(0) - 1).clamp(min=0)[kept]
        return torch.where(layout[kept, None], plane[kept], rows.index_select(0, row[index]))

    item = torch.arange(len(encoded.items), device=keep.device)
    sizes = torch.tensor(encoded.items, device=keep.device)
    item = item.repeat_interleave(sizes, output_size=keep.shape[0])
    counts = torch.zeros_like(sizes).index_add(0, item, keep.long())
    return Reduced(
        keep=keep,
        tokens=merged(encoded.tokens),
        planes={name: [merged(plane) for plane in encoded.planes[name]] for name in encoded.planes},
        items=counts.tolist(),
    )


def _slots(row: Tensor, out, offsets: Tensor) -> Tensor:
    """Return (N,) bool, True for one token of each cluster: its seed if that is a member.

    Args:
        row: (N,) row of each token among those of all groups.
        out: result of the clustering.
        offsets: (G,) index of the first token of each group.
    """
    tokens, rows = row.shape[0], offsets.shape[0] * out.num_rows
    token = torch.arange(tokens, device=row.device)
    first = row.new_full((rows,), tokens).scatter_reduce(0, row, token, "amin")
    # The residual has no seed.
    seeds = torch.nn.functional.pad(out.centres, (0, 1), value=-1)
    seeds = torch.where(seeds < 0, -1, seeds + offsets[:, None]).flatten()
    member = (seeds >= 0) & (row[seeds.clamp(min=0)] == torch.arange(rows, device=row.device))
    slots = torch.where(member, seeds, first)
    # Empty rows name the token after the last.
    marks = torch.zeros(tokens + 1, dtype=torch.bool, device=row.device)
    return marks.index_fill(0, slots, True)[:-1]
