"""Ragged rows of a clustering: what a language model reads, and the way back."""

import torch
from torch import Tensor


class Rows:
    """What every result has: rows of clusters, of which each image uses its first ones.

    Classes that inherit have `labels`, `counts`, `centres`, `grid`, `cu_seqlens` and `max_seqlen`
    as documented there, and the two properties.
    """

    @property
    def num_rows(self) -> int:
        """Rows of every image, used or not."""
        raise NotImplementedError

    @property
    def last_row(self) -> Tensor:
        """(B,) last row in use, -1 where there is none."""
        raise NotImplementedError

    def sizes(self) -> Tensor:
        """(B, num_rows) int64 number of tokens whose label names the row."""
        batch, rows = self.counts.shape[0], self.num_rows
        labels = self.labels
        if self.cu_seqlens is None:
            image = torch.arange(batch, device=labels.device)[:, None].expand_as(labels)
        else:
            position = torch.arange(labels.shape[0], device=labels.device)
            image = torch.searchsorted(self.cu_seqlens[1:].long(), position, right=True)
        # One extra column takes the masked tokens (label -1) and is cut off again.
        column = image * (rows + 1) + torch.where(labels < 0, rows, labels)
        size = labels.new_zeros(batch * (rows + 1))
        size.index_add_(0, column.reshape(-1), torch.ones_like(labels).reshape(-1))
        return size.view(batch, rows + 1)[:, :rows]

    def occupied(self) -> Tensor:
        """Which rows have members: (B, num_rows) bool, True where some label names it."""
        return self.sizes() > 0

    def pack(self, tokens: Tensor, drop_empty: bool = True) -> tuple[Tensor, Tensor]:
        """Merged tokens of all images one after the other, as a language model reads them.

        The one function here that waits for the device: the number of tokens is data.

        Args:
            tokens: (B, num_rows, D) from `merge_tokens`.
            drop_empty: keep only rows that are some token's label; otherwise all up to `last_row`.

        Returns:
            packed: (sum, D) in image order, rows ascending; carries gradient.
            cu_seqlens: (B + 1,) int32 offsets of the images.

        Raises:
            ValueError: the first two dimensions of `tokens` do not fit.
        """
        expected = (self.counts.shape[0], self.num_rows)
        if tokens.dim() != 3 or tokens.shape[:2] != expected:
            raise ValueError(
                f"tokens: expected shape ({expected[0]}, {expected[1]}, D), "
                f"got {tuple(tokens.shape)}"
            )
        if drop_empty:
            keep = self.occupied()
        else:
            row = torch.arange(self.num_rows, device=tokens.device)
            keep = row <= self.last_row[:, None]
        cu_seqlens = torch.zeros(expected[0] + 1, dtype=torch.int32, device=tokens.device)
        cu_seqlens[1:] = keep.sum(1).cumsum(0)
        return tokens[keep], cu_seqlens
