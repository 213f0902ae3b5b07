"""A sheet of what SeTokim draws, changes and segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from setokim.data import Conversation, Dataset
from setokim.data.image_processing import to_image
from setokim.evaluation.asking import answers
from setokim.training.stage2.settings import GenerationSettings
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor

_ROWS = 8  # of each task
_LOOKED_THROUGH = 256  # samples, for conversations of each task
_MARGIN = 4  # pixels
_TINT = np.array([255.0, 0.0, 255.0])


def draw_answers(
    model: SetokimModel,
    processor: SetokimProcessor,
    held_out: Dataset,
    settings: GenerationSettings,
    path: Path,
) -> None:
    """Writes a PNG: columns of three tasks, a row for each conversation.

    Generation: what was wanted and what came. Editing: before, wanted, what came. Segmentation: the
    wanted mask and the one that came, tinted. What was asked is in a text file beside it.

    Args:
        model: in the mode that it is in.
        processor: of the model.
        held_out: conversations.
        settings: how to generate.
        path: of the PNG; its folder is made.
    """
    chosen: dict[str, list[Conversation]] = {"generate": [], "edit": [], "segment": []}
    for index in range(min(_LOOKED_THROUGH, len(held_out))):
        sample = held_out[index]
        if len(chosen.get(sample.task, [None] * _ROWS)) < _ROWS:
            chosen[sample.task].append(sample)
    columns, lines = [], []
    for task, samples in chosen.items():
        if not samples:
            continue
        prompts = [sample.messages[:1] for sample in samples]
        found = answers(model, processor, prompts, settings.config())
        columns.append(
            [_row(sample, answer) for sample, answer in zip(samples, found, strict=True)]
        )
        for row, sample in enumerate(samples, 1):
            texts = [p["text"] for p in sample.messages[0]["content"] if p["type"] == "text"]
            lines.append(f"{task} {row}: {' '.join(texts)}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    if columns:
        _sheet(columns).save(path)
        path.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")


def _row(sample: Conversation, answer) -> list[Image.Image | None]:
    images = [
        part["image"]
        for message in sample.messages[:2]
        for part in message["content"]
        if part["type"] == "image"
    ]
    if sample.task != "segment":
        return [*images, to_image(answer.images[0]) if answer.images else None]
    said = (answer.masks[0] > 0).cpu().numpy() if answer.masks else None
    return [_tinted(images[0], mask) for mask in (sample.masks[0], said)]


def _tinted(image: Image.Image, mask: np.ndarray | None) -> Image.Image | None:
    if mask is None or mask.shape != (image.height, image.width):
        return None
    pixels = np.asarray(image, np.float64)
    mixed = np.where(mask[..., None], (pixels + _TINT) / 2, pixels)
    return Image.fromarray(mixed.astype(np.uint8))


def _sheet(columns: list[list[list[Image.Image | None]]]) -> Image.Image:
    """Rows of pictures side by side; black where there is none."""
    some = next(picture for column in columns for row in column for picture in row if picture)
    width, height = some.width + _MARGIN, some.height + _MARGIN
    wide = sum(len(column[0]) for column in columns) * width + _MARGIN * (len(columns) + 1)
    high = max(map(len, columns)) * height + _MARGIN
    sheet = Image.new("RGB", (wide, high), "white")
    left = _MARGIN
    for column in columns:
        for number, row in enumerate(column):
            for place, picture in enumerate(row):
                shown = picture or Image.new("RGB", (some.width, some.height))
                sheet.paste(shown, (left + place * width, _MARGIN + number * height))
        left += len(column[0]) * width + _MARGIN
    return sheet
