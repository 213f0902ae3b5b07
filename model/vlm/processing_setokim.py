"""Processor of SeTokim: conversations with images to model inputs, and ids back to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from setokim.data.conversations import SPECIAL
from setokim.data.stored_image import StoredImage
from setokim.tokenizer.processing_setok import SetokProcessor
from setokim.utils.pretrained import load_pretrained, locate
from setokim.vlm.chat_tokenizer import ChatTokenizer

IGNORED = -100  # label of positions without a loss, as in transformers
# Prompt format of Vicuna. `generation` encloses the assistant's turns, their ends included.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content[0].text }} "
    "{% elif message.role == 'user' %}USER:"
    "{% for part in message.content %}"
    " {% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %} "
    "{% else %}ASSISTANT:{% generation %}"
    "{% for part in message.content %}"
    " {% if part.type == 'image' %}<img><image></img>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{{ eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class SetokimProcessor:
    """Tokenizer with the special tokens of images, a chat template, and the image processor.

    Attributes:
        tokenizer: tokenizer of the language model, with `SPECIAL` added and the template set.
        image_processor: image processor of the visual tokenizer.

    Args:
        tokenizer: any fast tokenizer; changed in place.
        image_processor: image processor of the visual tokenizer.
        chat_template: Jinja template with `generation` around the assistant's turns. Images are
            `<image>`, between `<img>` and `</img>` where the assistant generates them. A mask is
            passed as a text part, which becomes `[SEG]`. Names of special tokens must be in one
            piece.

    Raises:
        ValueError: the tokenizer is not fast or has no end-of-text token, or the template has no
            `generation` or assembles names of special tokens from pieces.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: SetokProcessor,
        chat_template: str = CHAT_TEMPLATE,
    ):
        if not tokenizer.is_fast:
            got = type(tokenizer).__name__
            raise ValueError(f"tokenizer: expected a fast tokenizer, which has offsets, got {got}")
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "tokenizer: expected a tokenizer with eos_token, got one without eos_token"
            )
        if "{% generation %}" not in chat_template:
            expected = "a template with {% generation %} around the assistant's turns"
            raise ValueError(f"chat_template: expected {expected}, got {chat_template!r}")
        # The tokens absorb spaces around them, so that ids do not depend on such spaces.
        tokenizer.add_special_tokens(
            {
                "additional_special_tokens": [
                    AddedToken(name, lstrip=True, rstrip=True, normalized=False, special=True)
                    for name in SPECIAL
                ]
            }
        )
        tokenizer.chat_template = chat_template
        self.tokenizer = tokenizer
        self._encode = ChatTokenizer(tokenizer, chat_template)
        self.image_processor = image_processor

    @property
    def pad_id(self) -> int:
        """Id of padding, which is masked out."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def special_ids(self) -> dict[str, Any]:
        """Return the ids of special tokens as fields of `SetokimConfig`."""
        ids = self.tokenizer.convert_tokens_to_ids(list(SPECIAL))
        names = ("image_token_id", "image_start_id", "image_end_id", "segment_id")
        return dict(zip(names, ids, strict=True)) | {"eos_token_id": self.tokenizer.eos_token_id}

    def __call__(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        add_generation_prompt: bool = False,
        padding_side: str = "right",
        pack_to: int | None = None,
        preprocess: bool = True,
    ) -> dict[str, Any]:
        """Convert B conversations to a batch.

        Names of special tokens in texts, such as "[SEG]" or "</s>", become ordinary tokens. Special
        tokens come from the template, images and masks only. Lone surrogates become U+FFFD.

        Args:
            conversations: messages {"role": "system" | "user" | "assistant", "content": text or
                parts}. Parts are {"type": "text", "text": text},
                {"type": "image", "image": RGB image or `StoredImage`} and, of the assistant,
                {"type": "mask"} for `[SEG]`.
            add_generation_prompt: flag that appends the header of the assistant's next turn.
            padding_side: side of the padding, "right" or "left".
            pack_to: length of packed rows, such as 2048. Conversations without images are
                concatenated, cut into rows of this length, and placed after the others. No token is
                dropped, but the number of rows may change. None for one row per conversation.
            preprocess: flag; False returns the images themselves, a list, as `pixel_values`. So
                does a batch with a stored image.

        Returns:
            `input_ids` (B, L) int64 with one `<image>` for each image, `attention_mask` (B, L)
            int64, and `pixel_values` (M, 3, H, W) of all images in the order of their `<image>`; M
            may be 0. Without `add_generation_prompt` also `labels` (B, L) int64, -100 outside the
            assistant's turns.

        Raises:
            ValueError: `conversations` is empty, or a message or option does not fit.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side: expected left or right, got {padding_side!r}")
        if not conversations:
            raise ValueError("conversations: expected at least one, got none")
        checked = [[_checked(message) for message in messages] for messages in conversations]
        images = [
            part["image"]
            for messages in checked
            for message in messages
            for part in message["content"]
            if part["type"] == "image"
        ]
        rows = [self._row(messages, add_generation_prompt) for messages in checked]
        if pack_to is not None:
            if pack_to < 1 or add_generation_prompt:
                got = "add_generation_prompt" if pack_to >= 1 else pack_to
                raise ValueError(f"pack_to: expected at least 1 and whole conversations, got {got}")
            rows = _pack_rows(rows, [_has_image(messages) for messages in checked], pack_to)
        longest = max(len(row["input_ids"]) for row in rows)

        def stack(name: str, fill: int) -> Tensor:
            padded = []
            for row in rows:
                filling = [fill] * (longest - len(row[name]))
                left = padding_side == "left"
                padded.append(filling + row[name] if left else row[name] + filling)
            return torch.tensor(padded)

        as_they_are = not preprocess or any(isinstance(image, StoredImage) for image in images)
        batch = {
            "input_ids": stack("input_ids", self.pad_id),
            "attention_mask": stack("attention_mask", 0),
            "pixel_values": images if as_they_are else self._pixels(images),
        }
        # A prompt to be continued has no labels.
        return batch if add_generation_prompt else batch | {"labels": stack("labels", IGNORED)}

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer with its template, and `preprocessor_config.json`.

        Args:
            folder: folder to write to.
        """
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | None = None, trust_remote_code: bool = False
    ) -> SetokimProcessor:
        """Load a processor that `save_pretrained` wrote.

        Args:
            folder: folder of the tokenizer and the image processor, or name of an embedded model;
                None for the default one.
            trust_remote_code: flag that allows the folder's own Python code for its tokenizer.

        Raises:
            OSError: a file is missing.
            ValueError: a file has invalid content, or this installation lacks the embedded model.
        """
        folder = locate(folder)
        tokenizer = load_pretrained(AutoTokenizer, folder, trust_remote_code)
        template = tokenizer.chat_template or CHAT_TEMPLATE
        return cls(tokenizer, SetokProcessor.from_pretrained(folder), template)

    def _row(self, messages: list[dict], prompt: bool) -> dict[str, list[int]]:
        ids, generated = self._encode(messages, prompt)
        labels = [token if own else IGNORED for token, own in zip(ids, generated, strict=True)]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        if not images:
            return torch.zeros(0, 3, *self.image_processor.size)
        return self.image_processor(images)["pixel_values"]


def _has_image(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(part["type"] == "image" for message in messages for part in message["content"])


def _pack_rows(
    rows: Sequence[dict[str, list[int]]], separate: Sequence[bool], length: int
) -> list[dict[str, list[int]]]:
    """Return the separate rows, then all others, concatenated and cut to one length."""
    kept = [row for row, own in zip(rows, separate, strict=True) if own]
    others = [row for row, own in zip(rows, separate, strict=True) if not own]
    joined = {name: [token for row in others for token in row[name]] for name in rows[0]}
    return kept + [
        {name: tokens[start : start + length] for name, tokens in joined.items()}
        for start in range(0, len(joined["input_ids"]), length)
    ]


def _checked(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a validated copy with its content as parts."""
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"role: expected system, user or assistant, got {role!r}")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence) or not parts:
        raise ValueError(f"content: expected a text or a list of parts, got {content!r}")
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image" and isinstance(part.get("image"), (Image.Image, StoredImage)):
            continue
        if kind == "mask" and role == "assistant":
            continue
        if kind != "text" or not isinstance(part.get("text"), str):
            expected = "parts with a text or an image, or a mask of the assistant"
            raise ValueError(f"content: expected {expected}, got {part!r}")
    if role == "system" and any(part["type"] == "image" for part in parts):
        raise ValueError("content: expected text only in a system message, got an image")
    return {"role": role, "content": list(parts)}
