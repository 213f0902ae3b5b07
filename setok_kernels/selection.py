"""Selection of the centres from the scores, in plain PyTorch and without reading a value."""

import torch
from torch import Tensor


def choose_centres(
    score: Tensor,
    ok: Tensor,
    columns: int,
    threshold: float,
    min_clusters: int,
    by_index: bool,
    budget: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return centres (B, columns), -1 for none, and their counts (B,).

    Centres are the tokens of highest score, ties lowest index: those above the threshold, or if
    there are none the first `min_clusters`.

    Args:
        score: (B, N) seed scores.
        ok: (B, N) bool, False for excluded tokens.
        columns: maximum number of centres of an image.
        threshold: score that a centre must exceed; minus infinity for none.
        min_clusters: number of centres if no score exceeds the threshold, at least 1.
        by_index: flag: sort the centres by ascending token, not by descending score.
        budget: (B,) maximum number of centres of each image, negative for 0; None for `columns`.
    """
    # Excluded tokens come last.
    ranked = descending(torch.where(ok, score, -torch.inf))
    limit = ok.sum(1).clamp(max=columns)
    if budget is not None:
        limit = limit.minimum(budget.clamp(min=0))
    passed = (ok & (score > threshold)).sum(1).minimum(limit)
    counts = torch.where(passed > 0, passed, limit.clamp(max=min_clusters))
    order = torch.nn.functional.pad(ranked, (0, max(0, columns - score.shape[1])))
    rank = torch.arange(columns, device=score.device)
    centres = torch.where(rank < counts[:, None], order[:, :columns], -1)
    return ascending(centres, score.shape[1]) if by_index else centres, counts


def descending(values: Tensor) -> Tensor:
    """Return (B, N) positions that sort the values in descending order, ties lowest first."""
    if not torch.compiler.is_exporting():
        return values.sort(dim=1, descending=True, stable=True).indices
    # ONNX has no stable sort. The rank of a value is the number of values before it.
    own, other = values[:, :, None], values[:, None, :]
    index = torch.arange(values.shape[1], device=values.device)
    before = (other > own) | ((other == own) & (index[None, :] < index[:, None]))
    return torch.zeros_like(before[:, 0], dtype=torch.int64).scatter(
        1, before.sum(2), index.expand(values.shape)
    )


def ascending(centres: Tensor, tokens: int) -> Tensor:
    """Sort the tokens (B, C) of each row in ascending order; -1 entries stay at the end."""
    ranked = torch.where(centres < 0, tokens, centres).sort(dim=1).values
    return torch.where(ranked == tokens, -1, ranked)
