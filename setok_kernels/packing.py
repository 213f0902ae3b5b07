"""Ragged rows of a clustering for a language model, and their inverse."""

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from setok_kernels import layout
from setok_kernels.arguments import check_device, check_tensor
from setok_kernels.images import image_number, select_images
from setok_kernels.pytrees import TensorRecord, register
from setok_kernels.records import check_choices, check_members, check_record

ORDERS = ("seed", "raster", "size")

_Result = TypeVar("_Result", bound="Rows")


@register
@dataclass(frozen=True, eq=False)
class Packed(TensorRecord):
    """Concatenated rows of all images, as `pack` of every result returns them.

    It unpacks to the two tensors that attention over packed tokens reads:
    `tokens, cu_seqlens = out.pack(merged)`. Hence `packed[0]` is `tokens`, and `packed.image(0)`
    has the rows of the first image.

    S is the number of rows kept in all images. Only `tokens` carry gradient. Positions are in units
    of patches, y downwards and x to the right, both 0 at the centre of the first patch. On a grid
    (T, H, W) they start with t, in units of frames of the grid, 0 at the first.

    Attributes:
        tokens: (S, D) merged tokens.
        cu_seqlens: (B + 1,) int32 offsets of the images.
        max_seqlen: maximum number of rows of an image.
        images: (S,) int64 image of each row.
        rows: (S,) int64 index of each row in its image.
        sizes: (S,) int64 number of tokens with this label.
        seeds: (S,) int64 seed or centre of each row, local to its image; -1 for the residual.
        seed_positions: (S, 2) float32 (y, x) of the seed, or (S, 3) (t, y, x); all -1 for the
            residual.
        centroids: (S, 2) float32 mean (y, x), or (S, 3) (t, y, x), of the tokens with this label. A
            row without tokens has the position of its seed.
        num_rows: number of rows of each image before packing.
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
        # Only two fields unpack, so that new fields do not break callers.
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return (self.tokens, self.cu_seqlens)[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.tokens, self.cu_seqlens))

    def unpack(self, tokens: Tensor | None = None) -> Tensor:
        """Restore the padded rows, as `unmerge_tokens` reads them: the inverse of `pack`.

        Args:
            tokens: (S, ...) in the order of `tokens`, e.g. a model's output; None means `tokens`.

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

    def padded(
        self, tokens: Tensor | None = None, side: Literal["right", "left"] = "right"
    ) -> tuple[Tensor, Tensor]:
        """Pad the rows of each image, for models that cannot read `cu_seqlens`.

        Args:
            tokens: (S, ...) in the order of `tokens`; None means `tokens`.
            side: side of the padding: "right" of the rows, or "left", as batched generation needs.

        Returns:
            padded: (B, max_seqlen, ...), 0 in the padding; carries gradient.
            mask: (B, max_seqlen) bool, True for rows; `padded[mask]` is the inverse.

        Raises:
            TypeError, ValueError: `tokens` does not fit, or `side` is unknown.
        """
        if side not in ("right", "left"):
            raise ValueError(f"side: expected 'right' or 'left', got {side!r}")
        tokens, left = self._checked(tokens), side == "left"
        padded = layout.pad(tokens, self.cu_seqlens, self.max_seqlen, left=left)
        return padded, layout.valid_tokens(self.cu_seqlens, self.max_seqlen, left)

    def image(self, index: int) -> "Packed":
        """Return the rows of one image as a batch of one. Waits for the device.

        Args:
            index: index of the image; negative ones count from the end.

        Raises:
            TypeError: `index` is no integer.
            IndexError: there is no such image.
        """
        number = image_number(index, self.cu_seqlens.shape[0] - 1)
        start, end = self.cu_seqlens[number : number + 2].tolist()
        return Packed(
            tokens=self.tokens[start:end],
            cu_seqlens=self.cu_seqlens[number : number + 2] - start,
            max_seqlen=end - start,
            images=self.images[start:end] - number,
            rows=self.rows[start:end],
            sizes=self.sizes[start:end],
            seeds=self.seeds[start:end],
            seed_positions=self.seed_positions[start:end],
            centroids=self.centroids[start:end],
            num_rows=self.num_rows,
        )

    def _checked(self, tokens) -> Tensor:
        if tokens is None:
            return self.tokens
        rows = self.rows.shape[0]
        check_tensor("tokens", tokens)
        if tokens.dim() == 0 or tokens.shape[0] != rows:
            raise ValueError(f"tokens: expected shape ({rows}, ...), got {tuple(tokens.shape)}")
        check_device("tokens", tokens, self.rows.device, like="the labels")
        return tokens


class Rows(TensorRecord, abc.ABC):
    """Base class of the results: rows of clusters, of which each image uses the first.

    `out[i]` is the result of image i as a batch of one, `out[i:j]` that of several, and `len(out)`
    is the number of images. Packed results stay packed; their offsets are read, which waits for the
    device. Subclasses are dataclasses with the attributes `labels`, `counts`, `centres`, `grid`,
    `cu_seqlens` and `max_seqlen`, and the two properties.
    """

    if TYPE_CHECKING:

        @property
        def labels(self) -> Tensor: ...
        @property
        def counts(self) -> Tensor: ...
        @property
        def centres(self) -> Tensor: ...
        @property
        def grid(self) -> tuple[int, int] | tuple[int, int, int] | None: ...
        @property
        def cu_seqlens(self) -> Tensor | None: ...
        @property
        def max_seqlen(self) -> int | None: ...

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """Number of rows of each image, used or not."""

    @property
    @abc.abstractmethod
    def last_row(self) -> Tensor:
        """(B,) last row in use, -1 for none."""

    def __len__(self) -> int:
        return self.counts.shape[0]

    def __getitem__(self: _Result, index: int | slice) -> _Result:
        return select_images(self, index)

    def __iter__(self: _Result) -> Iterator[_Result]:
        return (self[image] for image in range(len(self)))

    def sizes(self) -> Tensor:
        """Return the number of tokens with each label, (B, num_rows) int64.

        Raises:
            TypeError, ValueError: a field of the result does not fit; the message names it.
        """
        slot, _, _ = self._members()
        batch, rows = self.counts.shape[0], self.num_rows
        count = slot.new_zeros(batch * rows + 1).index_add(0, slot, torch.ones_like(slot))
        return count[:-1].reshape(batch, rows)

    def occupied(self) -> Tensor:
        """Return (B, num_rows) bool, True for rows that are the label of a token."""
        return self.sizes() > 0

    def pack(
        self,
        tokens: Tensor,
        drop_empty: bool = True,
        order: Literal["seed", "raster", "size"] = "seed",
        grids: Tensor | list[tuple[int, int]] | list[tuple[int, int, int]] | None = None,
    ) -> Packed:
        """Concatenate the merged tokens of all images, as a language model reads them.

        This is the only method that waits for the device, because the number of tokens is data.

        Args:
            tokens: (B, num_rows, D) from `merge_tokens`.
            drop_empty: flag: keep only rows that are the label of a token, not all to `last_row`.
            order: order of the rows of an image, ties lowest row. "seed": unchanged. "raster": line
                by line, by the centroid's t if there is one, then y, both rounded (halves to even),
                then by its x. "size": by descending number of members. The residual is sorted like
                any other row.
            grids: (B, 2) int64 (H, W) of each image, if they differ: token i of an image is at
                (i // W, i % W). Or (B, 3) (T, H, W): token i is at (i // HW, i // W % H, i % W).
                None means the result's own `grid`, or without one a single line.

        Returns:
            `Packed`, which documents its shapes.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: `tokens` or `grids` does not fit the result, its fields do not fit together,
                or `order` is unknown.
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
        row = torch.arange(rows, device=tokens.device)
        statistics = self._statistics(grids)
        keep = statistics[0] > 0 if drop_empty else row <= self.last_row[:, None]
        return concatenate_rows(tokens, statistics, keep, order)

    def _members(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each label its row among all images, its image and its token there.

        Masked tokens get row B * num_rows, one past the last.
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
        # On a GPU labels are unchecked: an invalid one must not count in another image.
        named = (labels >= 0) & (labels < self.num_rows)
        slot = torch.where(named, image * self.num_rows + labels, batch * self.num_rows)
        return slot, image, token

    def _lengths(self) -> Tensor:
        """Return the number of tokens of each image (B,); padded: up to the last with a label."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens.diff()
        number = torch.arange(1, self.labels.shape[1] + 1, device=self.labels.device)
        # The extra first column covers images with N = 0.
        last = torch.nn.functional.pad(torch.where(self.labels < 0, 0, number), (1, 0))
        return last.amax(1)

    def _statistics(self, grids) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return `sizes`, `seeds`, `seed_positions` and `centroids` of all (B, num_rows) rows."""
        batch, rows = self.counts.shape[0], self.num_rows
        slot, image, token = self._members()
        if grids is None:
            # Without a grid the line is as long as the longest image.
            tokens = self.labels.shape[-1] if self.cu_seqlens is None else self.max_seqlen
            assert tokens is not None
            inner = (tokens,) if self.grid is None else self.grid[1:]
            sides = [self.counts.new_full((batch,), size) for size in inner]
        else:
            grids = _check_grids(grids, self._lengths().tolist(), self.cu_seqlens is not None)
            sides = [*grids[:, 1:].to(slot.device).unbind(1)]
        # Images without tokens may have sides of 0.
        sides = [side.clamp(min=1) for side in sides]

        # Integers: the sums are exact, so their order does not matter.
        position = _positions(token, [side[image] for side in sides])
        each = torch.stack([torch.ones_like(token), *position], 1)
        sums = each.new_zeros(batch * rows + 1, each.shape[1]).index_add(0, slot, each)[:-1]
        sums = sums.reshape(batch, rows, each.shape[1])
        sizes = sums[:, :, 0]

        seeds = torch.nn.functional.pad(self.centres, (0, rows - self.centres.shape[1]), value=-1)
        # Decisions with lowered counts still have the seeds after the last.
        row = torch.arange(rows, device=seeds.device)
        seeds = torch.where(row < self.counts[:, None], seeds, -1)
        positions = torch.stack(_positions(seeds, [side[:, None] for side in sides]), 2)
        positions = torch.where(seeds[:, :, None] < 0, -1, positions).float()
        mean = (sums[:, :, 1:].double() / sizes[:, :, None]).float()
        return sizes, seeds, positions, torch.where(sizes[:, :, None] > 0, mean, positions)


def concatenate_rows(
    tokens: Tensor,
    statistics: tuple[Tensor, Tensor, Tensor, Tensor],
    keep: Tensor,
    order: Literal["seed", "raster", "size"],
) -> Packed:
    """Concatenate the kept rows of all images in an order of `Rows.pack`; waits for the device.

    Args:
        tokens: (B, num_rows, D).
        statistics: (B, num_rows) `sizes` and `seeds`, (B, num_rows, 2 or 3) `seed_positions` and
            `centroids` of all rows.
        keep: (B, num_rows) bool.
        order: "seed", "raster" or "size".

    Raises:
        ValueError: `order` is unknown.
    """
    if order not in ORDERS:
        raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")
    batch, rows = keep.shape
    sizes, seeds, seed_positions, centroids = statistics
    row = torch.arange(rows, device=tokens.device).expand(batch, rows)
    image = torch.arange(batch, device=tokens.device)[:, None].expand(batch, rows)
    lengths = keep.sum(1)
    cu_seqlens = torch.zeros(batch + 1, dtype=torch.int32, device=tokens.device)
    cu_seqlens[1:] = lengths.cumsum(0)

    # Stable sorts from the last key to the first; dropped rows end up last.
    keys = [torch.where(keep, image, batch)]
    if order == "raster":
        *lines, x = centroids.unbind(2)
        keys = [x, *(line.round() for line in reversed(lines)), *keys]
    elif order == "size":
        keys = [-sizes, *keys]
    chosen = torch.arange(batch * rows, device=tokens.device)
    for key in keys:
        chosen = chosen[key.flatten()[chosen].sort(stable=True).indices]
    number = lengths.tolist()
    chosen = chosen[: sum(number)]

    def pick(table):
        return table.flatten(0, 1).index_select(0, chosen)

    return Packed(
        tokens=pick(tokens),
        cu_seqlens=cu_seqlens,
        max_seqlen=max(number, default=0),
        images=pick(image),
        rows=pick(row),
        sizes=pick(sizes),
        seeds=pick(seeds),
        seed_positions=pick(seed_positions),
        centroids=pick(centroids),
        num_rows=rows,
    )


def _positions(token: Tensor, sides: list[Tensor]) -> list[Tensor]:
    """Return the positions of tokens along each axis of a grid; `sides` lacks the first axis."""
    positions: list[Tensor] = []
    for side in reversed(sides):
        positions.insert(0, token % side)
        token = token // side
    return [token, *positions]


def _check_grids(grids, tokens: list[int], exact: bool) -> Tensor:
    """Return the sides of each image, (B, 2) or (B, 3) int64 on the CPU; check that tokens fit.

    Args:
        grids: user's argument.
        tokens: number of tokens of each image; if padding may follow, up to the last with a label.
        exact: flag: there is no padding.
    """
    if not isinstance(grids, Tensor):
        try:
            # On the CPU, where they are read, whatever torch's default device is.
            grids = torch.tensor(grids, dtype=None if len(grids) else torch.int64, device="cpu")
            grids = grids if len(grids) else grids.reshape(0, 2)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                "grids: expected a (B, 2) or (B, 3) tensor or a list of (H, W) or (T, H, W), "
                f"got {grids!r}"
            ) from error
    images = len(tokens)
    if tuple(grids.shape) not in ((images, 2), (images, 3)):
        raise ValueError(
            f"grids: expected shape ({images}, 2) or ({images}, 3), got {tuple(grids.shape)}"
        )
    if grids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"grids: expected dtype torch.int64, got {grids.dtype}")
    grids = grids.to("cpu", torch.int64)
    product = "H * W" if grids.shape[1] == 2 else "T * H * W"
    for image, (sides, count) in enumerate(zip(grids.tolist(), tokens, strict=True)):
        # An image without tokens may have a side of 0.
        min_side = 1 if count else 0
        if min(sides) < min_side:
            wanted = f"sides of at least {min_side}"
        elif exact and math.prod(sides) != count:
            wanted = f"{product} = {count}"
        elif math.prod(sides) < count:
            wanted = f"{product} of at least {count}"
        else:
            continue
        raise ValueError(f"grids: expected {wanted} for image {image}, got {tuple(sides)}")
    return grids
