"""Ragged rows of a clustering: what a language model reads, and the way back."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from setok_kernels import layout
from setok_kernels.arguments import check_device, check_tensor
from setok_kernels.records import check_choices, check_members, check_record

ORDERS = ("seed", "raster", "size")


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of all images one after the other; what `pack` of every result returns.

    As a sequence it is the pair that attention over packed tokens reads:
    `tokens, cu_seqlens = out.pack(merged)`.

    S is the number of rows kept in all images. Only `tokens` carry gradient. Positions are in units
    of patches, y downwards and x to the right, both 0 at the centre of the first patch.

    Attributes:
        tokens: (S, D).
        cu_seqlens: (B + 1,) int32 offsets of the images.
        max_seqlen: most rows of an image.
        images: (S,) int64 image of each row.
        rows: (S,) int64 number of each row in its image.
        sizes: (S,) int64 tokens with this label.
        seeds: (S,) int64 seed or centre of each row, local to its image; -1 for the residual.
        seed_positions: (S, 2) float32 (y, x) of the seed, (-1, -1) for the residual.
        centroids: (S, 2) float32 mean (y, x) of the tokens with this label. Where there are none it
            is the position of the seed.
        num_rows: rows of every image before packing.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    images: Tensor
    rows: Tensor
    sizes: Tensor
    seeds: Tensor
    seed_positions: Tensor
    centroids: Tensor
    num_rows: int

    def __len__(self) -> int:
        # Not every field: callers name these two, and further fields must not break them.
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return (self.tokens, self.cu_seqlens)[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.tokens, self.cu_seqlens))

    def unpack(self, tokens: Tensor | None = None) -> Tensor:
        """Every row back in its place, as `unmerge_tokens` reads them: the inverse of `pack`.

        Args:
            tokens: (S, ...) in the order of `tokens`, say a model's answers; None means `tokens`.

        Returns:
            (B, num_rows, ...), 0 in rows that were not packed; carries gradient.

        Raises:
            TypeError, ValueError: `tokens` does not fit.
        """
        tokens = self._checked(tokens)
        images = self.cu_seqlens.shape[0] - 1
        spread = tokens.new_zeros(images * self.num_rows, *tokens.shape[1:])
        spread.index_copy_(0, self.images * self.num_rows + self.rows, tokens)
        return spread.unflatten(0, (images, self.num_rows))

    def padded(self, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The rows of each image side by side, for models that cannot read `cu_seqlens`.

        Args:
            tokens: as in `unpack`.

        Returns:
            padded: (B, max_seqlen, ...), 0 behind the last row of an image; carries gradient.
            mask: (B, max_seqlen) bool, True where there is a row; `padded[mask]` is the way back.

        Raises:
            TypeError, ValueError: `tokens` does not fit.
        """
        tokens = self._checked(tokens)
        padded = layout.pad(tokens, self.cu_seqlens, self.max_seqlen)
        return padded, layout.valid_tokens(self.cu_seqlens, self.max_seqlen)

    def _checked(self, tokens) -> Tensor:
        if tokens is None:
            return self.tokens
        rows = self.rows.shape[0]
        check_tensor("tokens", tokens)
        if tokens.dim() == 0 or tokens.shape[0] != rows:
            raise ValueError(f"tokens: expected shape ({rows}, ...), got {tuple(tokens.shape)}")
        check_device("tokens", tokens, self.rows.device, like="the labels")
        return tokens


class Rows(abc.ABC):
    """What every result has: rows of clusters, of which each image uses its first ones.

    Classes that inherit have `labels`, `counts`, `centres`, `grid`, `cu_seqlens` and `max_seqlen`
    as documented there, and the two properties.
    """

    if TYPE_CHECKING:

        @property
        def labels(self) -> Tensor: ...
        @property
        def counts(self) -> Tensor: ...
        @property
        def centres(self) -> Tensor: ...
        @property
        def grid(self) -> tuple[int, int] | None: ...
        @property
        def cu_seqlens(self) -> Tensor | None: ...
        @property
        def max_seqlen(self) -> int | None: ...

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """Rows of every image, used or not."""

    @property
    @abc.abstractmethod
    def last_row(self) -> Tensor:
        """(B,) last row in use, -1 where there is none."""

    def sizes(self) -> Tensor:
        """(B, num_rows) int64 number of tokens whose label names the row.

        Raises:
            TypeError, ValueError: a field of the result does not fit; the message names it.
        """
        slot, _, _ = self._members()
        batch, rows = self.counts.shape[0], self.num_rows
        count = slot.new_zeros(batch * rows + 1).index_add(0, slot, torch.ones_like(slot))
        return count[:-1].reshape(batch, rows)

    def occupied(self) -> Tensor:
        """(B, num_rows) bool, True where some token's label names the row."""
        return self.sizes() > 0

    def pack(
        self,
        tokens: Tensor,
        drop_empty: bool = True,
        order: Literal["seed", "raster", "size"] = "seed",
        grids: Tensor | list[tuple[int, int]] | None = None,
    ) -> Packed:
        """Merged tokens of all images one after the other, as a language model reads them.

        The one function here that waits for the device: the number of tokens is data.

        Args:
            tokens: (B, num_rows, D) from `merge_tokens`.
            drop_empty: keep only rows that are some token's label; otherwise all up to `last_row`.
            order: of the rows of an image, ties lowest row. "seed": as they are. "raster": line by
                line, by the centroid's y, rounded (halves to even), then by its x. "size": most
                members first. The residual has no place of its own.
            grids: (B, 2) int64 (H, W) of each image, where they differ: token i of an image is at
                (i // W, i % W). None means the result's own `grid`, or without one a single line.

        Returns:
            `Packed`; see there for shapes.

        Raises:
            TypeError: an argument is of another type.
            ValueError: `tokens` or `grids` does not fit the result, its fields do not fit together,
                or there is no such `order`.
        """
        record = check_record(self)
        if record is not self:
            return Rows.pack(record, tokens, drop_empty, order, grids)
        check_choices(self)
        batch, rows = self.counts.shape[0], self.num_rows
        check_tensor("tokens", tokens)
        if tokens.dim() != 3 or tokens.shape[:2] != (batch, rows):
            raise ValueError(
                f"tokens: expected shape ({batch}, {rows}, D), got {tuple(tokens.shape)}"
            )
        check_device("tokens", tokens, self.labels.device, like="the labels")
        if order not in ORDERS:
            raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")

        row = torch.arange(rows, device=tokens.device).expand(batch, rows)
        image = torch.arange(batch, device=tokens.device)[:, None].expand(batch, rows)
        sizes, seeds, seed_positions, centroids = self._statistics(grids)
        keep = sizes > 0 if drop_empty else row <= self.last_row[:, None]
        lengths = keep.sum(1)
        cu_seqlens = torch.zeros(batch + 1, dtype=torch.int32, device=tokens.device)
        cu_seqlens[1:] = lengths.cumsum(0)

        # Stable sorts from the last key to the first; rows that are dropped end up behind all.
        keys = [torch.where(keep, image, batch)]
        if order == "raster":
            keys = [centroids[:, :, 1], centroids[:, :, 0].round(), *keys]
        elif order == "size":
            keys = [-sizes, *keys]
        chosen = torch.arange(batch * rows, device=tokens.device)
        for key in keys:
            chosen = chosen[key.flatten()[chosen].sort(stable=True).indices]
        lengths = lengths.tolist()
        chosen = chosen[: sum(lengths)]

        def pick(table):
            return table.flatten(0, 1).index_select(0, chosen)

        return Packed(
            tokens=pick(tokens),
            cu_seqlens=cu_seqlens,
            max_seqlen=max(lengths, default=0),
            images=pick(image),
            rows=pick(row),
            sizes=pick(sizes),
            seeds=pick(seeds),
            seed_positions=pick(seed_positions),
            centroids=pick(centroids),
            num_rows=rows,
        )

    def _members(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of every label: its row among those of all images, its image, its token in that.

        Masked tokens have the row B * num_rows, one behind the last.
        """
        check_record(self)
        check_members(self)
        labels, batch = self.labels, self.counts.shape[0]
        if self.cu_seqlens is None:
            image = torch.arange(batch, device=labels.device)[:, None].expand_as(labels).flatten()
            token = torch.arange(labels.shape[1], device=labels.device).expand_as(labels).flatten()
        else:
            image, token = layout.token_positions(self.cu_seqlens, labels.shape[0])
        labels = labels.flatten()
        # What is no row must not count in another image, where no label can be read.
        named = (labels >= 0) & (labels < self.num_rows)
        slot = torch.where(named, image * self.num_rows + labels, batch * self.num_rows)
        return slot, image, token

    def _lengths(self) -> Tensor:
        """(B,) tokens of each image; of padded ones those up to the last that has a label."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens.diff()
        number = torch.arange(1, self.labels.shape[1] + 1, device=self.labels.device)
        # The column in front is for images of no tokens at all.
        last = torch.nn.functional.pad(torch.where(self.labels < 0, 0, number), (1, 0))
        return last.amax(1)

    def _statistics(self, grids) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`sizes`, `seeds`, `seed_positions` and `centroids` of all (B, num_rows) rows."""
        batch, rows = self.counts.shape[0], self.num_rows
        slot, image, token = self._members()
        if grids is None:
            # Without a grid the line is as long as the longest image.
            tokens = self.labels.shape[-1] if self.cu_seqlens is None else self.max_seqlen
            assert tokens is not None
            width = self.counts.new_full((batch,), tokens if self.grid is None else self.grid[1])
        else:
            grids = _check_grids(grids, self._lengths().tolist(), self.cu_seqlens is not None)
            width = grids[:, 1].to(slot.device)
        # Images without tokens may have width 0.
        width = width.clamp(min=1)

        # Integers: the sums are exact, so their order does not matter.
        each = torch.stack([torch.ones_like(token), token // width[image], token % width[image]], 1)
        sums = each.new_zeros(batch * rows + 1, 3).index_add(0, slot, each)[:-1]
        sums = sums.reshape(batch, rows, 3)
        sizes = sums[:, :, 0]

        seeds = torch.nn.functional.pad(self.centres, (0, rows - self.centres.shape[1]), value=-1)
        # Decisions that were cut short for a replay still name the seeds behind the last.
        row = torch.arange(rows, device=seeds.device)
        seeds = torch.where(row < self.counts[:, None], seeds, -1)
        positions = torch.stack([seeds // width[:, None], seeds % width[:, None]], 2)
        positions = torch.where(seeds[:, :, None] < 0, -1, positions).float()
        mean = (sums[:, :, 1:].double() / sizes[:, :, None]).float()
        return sizes, seeds, positions, torch.where(sizes[:, :, None] > 0, mean, positions)


def _check_grids(grids, tokens: list[int], exact: bool) -> Tensor:
    """(B, 2) int64 on the CPU: the side lengths of each image, which hold its tokens.

    Args:
        grids: what the user passed.
        tokens: of each image, or where padding may follow them, up to the last that has a label.
        exact: there is no padding.
    """
    if not isinstance(grids, Tensor):
        try:
            # Where they are read, whatever torch's default device is.
            grids = torch.tensor(grids, dtype=None if len(grids) else torch.int64, device="cpu")
            grids = grids if len(grids) else grids.reshape(0, 2)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"grids: expected a (B, 2) tensor or a list of (H, W), got {grids!r}"
            ) from error
    if tuple(grids.shape) != (len(tokens), 2):
        raise ValueError(f"grids: expected shape ({len(tokens)}, 2), got {tuple(grids.shape)}")
    if grids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"grids: expected dtype torch.int64, got {grids.dtype}")
    grids = grids.to("cpu", torch.int64)
    for image, ((height, width), count) in enumerate(zip(grids.tolist(), tokens, strict=True)):
        # An image without tokens is 0 patches wide, or high.
        least = 1 if count else 0
        if min(height, width) < least:
            wanted = f"sides of at least {least}"
        elif exact and height * width != count:
            wanted = f"H * W = {count}"
        elif height * width < count:
            wanted = f"H * W of at least {count}"
        else:
            continue
        raise ValueError(f"grids: expected {wanted} for image {image}, got ({height}, {width})")
    return grids
