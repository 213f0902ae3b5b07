"""Which tokens are centres, chosen from their scores in plain PyTorch: no value is read."""

import torch
from torch import Tensor


def choose_centres(
    score: Tensor,
    ok: Tensor,
    columns: int,
    threshold: float,
    min_clusters: int,
    by_index: bool,
) -> tuple[Tensor, Tensor]:
    """(B, columns) centres, -1 where absent, and (B,) how many.

    The tokens of highest score, ties lowest index: those above the threshold, or where there are
    none the first `min_clusters`.

    Args:
        score: (B, N).
        ok: (B, N) bool, tokens that take part.
        columns: most centres of an image.
        threshold: minus infinity for none.
        min_clusters: at least 1.
        by_index: centres by ascending token, not by falling score.
    """
    # Tokens that take no part come last.
    ranked = descending(torch.where(ok, score, -torch.inf))
    most = ok.sum(1).clamp(max=columns)
    passed = (ok & (score > threshold)).sum(1).minimum(most)
    counts = torch.where(passed > 0, passed, most.clamp(max=min_clusters))
    order = torch.nn.functional.pad(ranked, (0, max(0, columns - score.shape[1])))
    rank = torch.arange(columns, device=score.device)
    centres = torch.where(rank < counts[:, None], order[:, :columns], -1)
    return ascending(centres, score.shape[1]) if by_index else centres, counts


def descending(values: Tensor) -> Tensor:
    """(B, N) positions of the values from the largest to the smallest, ties lowest first."""
    if not torch.compiler.is_exporting():
        return values.sort(dim=1, descending=True, stable=True).indices
    # ONNX has no stable sort. How many come before a value is its place.
    own, other = values[:, :, None], values[:, None, :]
    index = torch.arange(values.shape[1], device=values.device)
    before = (other > own) | ((other == own) & (index[None, :] < index[:, None]))
    return torch.zeros_like(before[:, 0], dtype=torch.int64).scatter(
        1, before.sum(2), index.expand(values.shape)
    )


def ascending(centres: Tensor, tokens: int) -> Tensor:
    """(B, C) tokens below `tokens` in ascending order, -1 behind them as before."""
    ranked = torch.where(centres < 0, tokens, centres).sort(dim=1).values
    return torch.where(ranked == tokens, -1, ranked)
