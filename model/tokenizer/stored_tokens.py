"""Stored images to visual tokens, and visual tokens to stored images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

import torch
from PIL import Image
from torch import Tensor

from setok_kernels import Packed, layout
from setokim.data.stored_image import StoredImage
from setokim.data.tokens.layout import KINDS
from setokim.tokenizer.modeling_setok import SetokModel, VisualTokens
from setokim.tokenizer.stored_rows import StoredRows

# RGB images, stored images, or both.
Images = Sequence[Image.Image | StoredImage]
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@torch.no_grad()
def to_stored(
    visual: VisualTokens,
    sizes: Sequence[tuple[int, int]],
    what: Collection[str] = ("tokens",),
    dtype: torch.dtype = torch.bfloat16,
) -> list[StoredImage]:
    """Convert visual tokens to stored images, on the CPU.

    Args:
        visual: visual tokens of B images.
        sizes: height and width in pixels of each image.
        what: some of `layout.KINDS`.
        dtype: dtype of tokens, masks and features: bfloat16, float16 or float32.

    Raises:
        TypeError: `dtype` is another one.
        ValueError: an argument does not fit, or what shall be stored does not exist.
    """
    for name in what:
        if name not in KINDS:
            raise ValueError(f"what: expected some of {', '.join(KINDS)}, got {name!r}")
    if dtype not in _DTYPES:
        expected = ", ".join(map(str, _DTYPES))
        raise TypeError(f"dtype: expected one of {expected}, got {dtype}")
    if len(sizes) != len(visual.tokens):
        raise ValueError(
            f"sizes: expected one for each of {len(visual.tokens)} images, got {sizes}"
        )
    if "features" in what and visual.features is None:
        raise ValueError("what: expected no features, which these tokens lack, got features")
    packed = visual.pack()
    number = packed.cu_seqlens.diff().tolist()
    frames = packed.centroids.new_zeros(len(packed.centroids), 1)
    # Columns with one row for each token, and with one for each image.
    by_token = {
        "sizes": packed.sizes,
        "positions": torch.cat([frames, packed.centroids], 1),
        "seeds": packed.seeds,
    }
    by_image = {}
    if "tokens" in what:
        by_token["tokens"] = packed.tokens.to(dtype)
    if "masks" in what:
        by_token["masks"] = _masks_of(visual, packed).to(dtype)
    if "labels" in what:
        by_image["labels"] = _labels_of(visual, packed)
    if visual.features is not None and "features" in what:
        by_image["features"] = visual.features.to(dtype)
    columns = {name: column.cpu().split(number) for name, column in by_token.items()}
    columns |= {name: column.cpu().unbind(0) for name, column in by_image.items()}
    return [
        StoredImage(
            height=height,
            width=width,
            grid=(1, *visual.grid),
            **{"tokens": None} | {name: column[i] for name, column in columns.items()},
        )
        for i, (height, width) in enumerate(sizes)
    ]


def from_stored(
    images: Sequence[StoredImage], rows: int, device: torch.device, dtype: torch.dtype
) -> VisualTokens:
    """Convert stored images to the visual tokens that they were made of.

    The tokens of an image are in its first rows. Masks, labels and features are those that all
    images have.

    Args:
        images: M images with tokens, at least one, on any device.
        rows: R, max number of tokens of an image.
        device: device of the result.
        dtype: dtype of the tokens.

    Raises:
        ValueError: an image has no tokens, more than R, or several frames, or the images differ in
            their grids or numbers of channels.
    """
    grid, tokens = _checked(images, rows)
    number = [len(image.sizes) for image in images]
    counts = torch.tensor(number, device=device)
    row = torch.arange(rows, device=device).expand(len(images), rows)
    occupied = row < counts[:, None]

    def spread(parts: list[Tensor], kind: torch.dtype) -> Tensor:
        """Pad (n, ...) for each image to (M, R, ...)."""
        joined = torch.cat(parts).to(device, kind)
        table = joined.new_zeros(len(images), rows, *joined.shape[1:])
        table[occupied] = joined
        return table

    def stack(parts: list[Tensor] | None, kind: torch.dtype) -> Tensor | None:
        return None if parts is None else torch.stack(parts).to(device, kind)

    masks = _stored_by_all(images, "masks")
    parts = StoredRows(
        counts=counts,
        sizes=spread([image.sizes for image in images], torch.int64),
        centres=spread([image.seeds for image in images], torch.int64),
        centroids=spread([image.positions[:, 1:] for image in images], torch.float32),
        grid=grid,
        labels=stack(_stored_by_all(images, "labels"), torch.int64),
        masks=None if masks is None else spread(masks, torch.float32),
    )
    features = stack(_stored_by_all(images, "features"), torch.float32)
    return VisualTokens(spread(tokens, dtype), occupied, parts, grid, features)


def visual_tokens(
    setok: SetokModel,
    images: Images,
    tokenize: Callable[[Sequence[Image.Image]], VisualTokens] | None = None,
    rows: int | None = None,
) -> VisualTokens:
    """Return the visual tokens of RGB images and stored images, in any order.

    Stored tokens are used as they are. The features of an image without tokens are clustered and
    merged; so are those of all images with `setok.reads_features`, with gradient.

    Args:
        setok: tokenizer of the images.
        images: M images, at least one.
        tokenize: function that tokenizes RGB images; None for `setok.tokenize`.
        rows: result of `setok.max_tokens`; None to compute it.

    Raises:
        ValueError: a stored image has neither tokens to use nor features, or does not fit.
    """
    chosen: dict[str, list[int]] = {"pixels": [], "tokens": [], "features": []}
    for i, image in enumerate(images):
        chosen[_source(image, setok.reads_features)].append(i)
    own = {name: [images[i] for i in index] for name, index in chosen.items()}
    parts: list[VisualTokens] = []
    if own["pixels"]:
        parts.append((tokenize or setok.tokenize)(own["pixels"]))
    if own["tokens"]:
        rows = setok.max_tokens() if rows is None else rows
        parts.append(from_stored(own["tokens"], rows, setok.device, setok.dtype))
    if own["features"]:
        features = torch.stack([image.features for image in own["features"]])
        features = features.to(setok.device, torch.float32)
        parts.append(setok.tokenize_features(features.unflatten(1, own["features"][0].grid[1:])))
    if len(parts) == 1:
        return parts[0]
    joined = join_stored([as_stored(part) for part in parts])
    order = torch.tensor([i for index in chosen.values() for i in index], device=setok.device)
    return joined.select(order.argsort())


def no_tokens(setok: SetokModel, rows: int) -> VisualTokens:
    """Return the tokens of no image, in the form of `from_stored`, without running the tokenizer.

    Args:
        setok: tokenizer.
        rows: result of `setok.max_tokens`.
    """
    empty = StoredImage(
        height=1,
        width=1,
        grid=(1, *setok.encoder.grid),
        tokens=torch.zeros(0, setok.config.token_dim),
        sizes=torch.zeros(0, dtype=torch.int64),
        positions=torch.zeros(0, 3),
        seeds=torch.zeros(0, dtype=torch.int64),
    )
    one = from_stored([empty], rows, setok.device, setok.dtype)
    return one.select(torch.zeros(0, dtype=torch.int64, device=setok.device))


def as_stored(visual: VisualTokens) -> VisualTokens:
    """Return the same tokens as `from_stored` returns them, with gradient; on their device."""
    if isinstance(visual.parts, StoredRows):
        return visual
    packed, shape = visual.pack(), visual.tokens.shape[:2]
    counts = packed.cu_seqlens.diff().long()
    row = torch.arange(shape[1], device=counts.device).expand(shape)
    occupied = row < counts[:, None]

    def spread(column: Tensor) -> Tensor:
        table = column.new_zeros(*shape, *column.shape[1:])
        return table.masked_scatter(occupied.view(*shape, *[1] * (column.dim() - 1)), column)

    parts = StoredRows(
        counts=counts,
        sizes=spread(packed.sizes),
        centres=spread(packed.seeds),
        centroids=spread(packed.centroids),
        grid=visual.grid,
        labels=_labels_of(visual, packed),
        masks=spread(_masks_of(visual, packed)),
    )
    return VisualTokens(spread(packed.tokens), occupied, parts, visual.grid, visual.features)


def join_stored(parts: Sequence[VisualTokens]) -> VisualTokens:
    """Concatenate images of `from_stored` and `as_stored`; they keep what all of them have."""
    lacking = [
        name
        for name in ("labels", "masks")
        if any(getattr(one.parts, name) is None for one in parts)
    ]
    bare = any(one.features is None for one in parts)
    return VisualTokens.join(
        [
            dataclasses.replace(
                one,
                parts=dataclasses.replace(one.parts, **dict.fromkeys(lacking)),
                features=None if bare else one.features,
            )
            for one in parts
        ]
    )


def _source(image: Image.Image | StoredImage, reads_features: bool) -> str:
    """Return what the tokens of an image come from: "pixels", "tokens" or "features"."""
    if not isinstance(image, StoredImage):
        return "pixels"
    if image.tokens is not None and not reads_features:
        return "tokens"
    if image.features is None:
        expected = "features to tokenize" if reads_features else "tokens or features"
        raise ValueError(f"images: expected stored images with {expected}, got one without")
    return "features"


def _labels_of(visual: VisualTokens, packed: Packed) -> Tensor:
    """Return (B, N) int64, the index of each patch's token among those of its image."""
    _, index = layout.token_positions(packed.cu_seqlens, len(packed.rows))
    renumbered = packed.rows.new_full(visual.tokens.shape[:2], -1)
    renumbered[packed.images, packed.rows] = index
    labels = visual.labels
    return renumbered.gather(1, labels.clamp(min=0)).masked_fill(labels < 0, -1)


def _masks_of(visual: VisualTokens, packed: Packed) -> Tensor:
    """Return (S, N), the masks of the tokens in the order of `packed`."""
    return visual.masks[packed.images, packed.rows]


def _checked(images: Sequence[StoredImage], rows: int) -> tuple[tuple[int, int], list[Tensor]]:
    """Return the grid and the tokens of images that fit into one batch."""
    frames, *grid = images[0].grid
    tokens = []
    for image in images:
        if image.tokens is None:
            raise ValueError("images: expected stored tokens, got an image without them")
        if image.grid != images[0].grid or frames != 1:
            expected = f"one frame and the grid of the first image, {images[0].grid}"
            raise ValueError(f"images: expected {expected}, got {image.grid}")
        if len(image.tokens) > rows:
            raise ValueError(f"images: expected at most {rows} tokens, got {len(image.tokens)}")
        if image.tokens.shape[1] != images[0].tokens.shape[1]:
            expected = f"tokens of {images[0].tokens.shape[1]} channels"
            raise ValueError(f"images: expected {expected}, got {image.tokens.shape[1]}")
        tokens.append(image.tokens)
    return (grid[0], grid[1]), tokens


def _stored_by_all(images: Sequence[StoredImage], name: str) -> list[Tensor] | None:
    """Return a field of all images; None if an image lacks it."""
    found = [getattr(image, name) for image in images]
    return None if any(value is None for value in found) else found
