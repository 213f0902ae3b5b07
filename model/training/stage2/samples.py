"""Image sheet of stages 2 and 3: generated, edited and segmented images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from setokim.data import Conversation, Dataset
from setokim.data.image_processing import to_image
from setokim.data.stored_image import StoredImage
from setokim.evaluation.prompting import generate_answers
from setokim.evaluation.settings import GenerationSettings
from setokim.tokenizer.stored_tokens import visual_tokens
from setokim.vlm.generation import Answer
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

_ROWS = 10  # conversations of each task
_MAX_SAMPLES = 256  # samples to search for them
_MARGIN = 4  # pixels
_MAX_SIDE = 384  # pixels, maximum side of an image on the sheet
_TINT = np.array([255.0, 0.0, 255.0])


def write_samples(
    model: SetokimModel,
    processor: SetokimProcessor,
    held_out: Dataset,
    settings: GenerationSettings,
    path: Path,
) -> None:
    """Write an image sheet with a column for each of three tasks and a row for each conversation.

    Generation shows the target and the generated image. Editing shows the source image too.
    Segmentation shows the target mask and the predicted mask as tints. The instructions are in a
    text file of the same name. Large images are scaled down, and an answer is scaled to its target.
    A stored image is shown as the detokenizer reconstructs it.
    Without a conversation of these tasks no file is written.

    Args:
        model: model in the mode to show.
        processor: tokenizer and image processor of the model.
        held_out: conversations of any data set.
        settings: options of generation.
        path: path of the PNG; its folder is created.
    """
    chosen: dict[str, list[Conversation]] = {"generate": [], "edit": [], "segment": []}
    for index in range(min(_MAX_SAMPLES, len(held_out))):
        sample = held_out[index]
        if len(chosen.get(sample.task, [None] * _ROWS)) < _ROWS:
            chosen[sample.task].append(sample)
    columns, lines = [], []
    for task, samples in chosen.items():
        if not samples:
            continue
        prompts = [sample.messages[:1] for sample in samples]
        found = generate_answers(model, processor, prompts, settings.config())
        columns.append(
            [_row(model, sample, answer) for sample, answer in zip(samples, found, strict=True)]
        )
        for row, sample in enumerate(samples, 1):
            texts = [p["text"] for p in sample.messages[0]["content"] if p["type"] == "text"]
            lines.append(f"{task} {row}: {' '.join(texts)}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    if columns:
        _sheet(columns).save(path)
        path.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")


def _row(model: SetokimModel, sample: Conversation, answer: Answer) -> list[Image.Image | None]:
    """Return the images of a row in one size; None for an answer without image or mask."""
    images = [
        _with_pixels(model, part["image"])
        for message in sample.messages[:2]
        for part in message["content"]
        if part["type"] == "image"
    ]
    # The last image is the target, or the one to segment.
    size = _fitting(images[-1].size)
    if sample.task != "segment":
        generated = [to_image(answer.images[0])] if answer.images else [None]
        return [_scaled(image, size) for image in [*images, *generated]]
    predicted = (answer.masks[0] > 0).cpu().numpy() if answer.masks else None
    shown = _scaled(images[-1], size)
    return [_tinted(shown, mask) for mask in (sample.masks[0], predicted)]


@torch.no_grad()
def _with_pixels(model: SetokimModel, image: Image.Image | StoredImage) -> Image.Image:
    """Return an image itself, or the reconstruction of a stored one in its size."""
    if not isinstance(image, StoredImage):
        return image
    visual = visual_tokens(model.setok, [image])
    pixels = model.setok.detokenizer(visual.tokens, visual.occupied)[0]
    return to_image(pixels.float().clamp(0, 1)).resize(
        (image.width, image.height), Image.Resampling.BICUBIC
    )


def _fitting(size: tuple[int, int]) -> tuple[int, int]:
    """Scale a width and height down to at most `_MAX_SIDE`."""
    factor = min(1.0, _MAX_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _scaled(image: Image.Image | None, size: tuple[int, int]) -> Image.Image | None:
    if image is None or image.size == size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC)


def _tinted(image: Image.Image, mask: np.ndarray | None) -> Image.Image | None:
    if mask is None:
        return None
    if mask.shape != (image.height, image.width):
        mask = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.asarray(image, np.float64)
    mixed = np.where(mask[..., None], (pixels + _TINT) / 2, pixels)
    return Image.fromarray(mixed.astype(np.uint8))


def _sheet(columns: list[list[list[Image.Image | None]]]) -> Image.Image:
    """Put rows of images side by side in cells of one size; missing images are black."""
    cell = _cell(image for column in columns for row in column for image in row if image)
    width, height = cell[0] + _MARGIN, cell[1] + _MARGIN
    # Conversations may have several images before the target.
    across = [max(map(len, column)) for column in columns]
    wide = sum(across) * width + _MARGIN * (len(columns) + 1)
    high = max(map(len, columns)) * height + _MARGIN
    sheet = Image.new("RGB", (wide, high), "white")
    left = _MARGIN
    for column, number in zip(columns, across, strict=True):
        for top, row in enumerate(column):
            for column_index, image in enumerate(row):
                shown = image or Image.new("RGB", next(i for i in row if i).size)
                sheet.paste(shown, (left + column_index * width, _MARGIN + top * height))
        left += number * width + _MARGIN
    return sheet


def _cell(images: Iterable[Image.Image]) -> tuple[int, int]:
    sizes = [image.size for image in images]
    return max(width for width, _ in sizes), max(height for _, height in sizes)
