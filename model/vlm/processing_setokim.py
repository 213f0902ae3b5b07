"""Conversations with pictures to what SetokimModel reads, and its answers back to words."""

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
from setokim.tokenizer.processing_setok import SetokProcessor
from setokim.utils.pretrained import load_pretrained
from setokim.vlm.chat_tokenizer import ChatTokenizer

IGNORED = -100  # the label of what is not learnt, as everywhere in transformers
# Vicuna's words. What the assistant says, its end included, is what `generation` encloses.
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
    """A tokenizer with the tokens of pictures, a chat template, and the pictures' processor.

    Attributes:
        tokenizer: of the language model, with `SPECIAL` added and the template as its own.
        image_processor: of the visual tokenizer.

    Args:
        tokenizer: any fast tokenizer; it is changed.
        image_processor: of the visual tokenizer.
        chat_template: Jinja, in which `generation` encloses what the assistant says and pictures
            are `<image>`, between `<img>` and `</img>` where the assistant draws them. A mask
            reaches it as a text part, which becomes `[SEG]`. Names of special tokens stand in it in
            one piece.

    Raises:
        ValueError: the tokenizer is not a fast one, has no end of text, or the template has no
            `generation`, or assembles names of special tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: SetokProcessor,
        chat_template: str = CHAT_TEMPLATE,
    ):
        if not tokenizer.is_fast:
            got = type(tokenizer).__name__
            raise ValueError(f"tokenizer: expected a fast one, which knows offsets, got {got}")
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: expected one with an end of text, got none")
        if "{% generation %}" not in chat_template:
            expected = "a template with {% generation %} around the assistant's words"
            raise ValueError(f"chat_template: expected {expected}, got {chat_template!r}")
        # Spaces around them are theirs, so that a picture reads the same with and without.
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
        """What fills short rows; nothing reads it."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def special_ids(self) -> dict[str, Any]:
        """The fields of `SetokimConfig` that name tokens."""
        ids = self.tokenizer.convert_tokens_to_ids(list(SPECIAL))
        names = ("image_token_id", "image_start_id", "image_end_id", "segment_id")
        return dict(zip(names, ids, strict=True)) | {"eos_token_id": self.tokenizer.eos_token_id}

    def __call__(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        add_generation_prompt: bool = False,
        padding_side: str = "right",
        pack_to: int | None = None,
    ) -> dict[str, Tensor]:
        """B conversations to a batch.

        Text is text: names of special tokens in it, such as "[SEG]" or "</s>", become ordinary
        tokens. Special tokens come from the template, images and masks alone. Lone surrogates
        become U+FFFD.

        Args:
            conversations: messages {"role": "system" | "user" | "assistant", "content": text or
                parts}, parts being {"type": "text", "text": text},
                {"type": "image", "image": RGB picture} and, of the assistant, {"type": "mask"},
                where `[SEG]` stands.
            add_generation_prompt: end with the words after which the assistant speaks.
            padding_side: "right" or "left".
            pack_to: length of rows, such as 2048, to which conversations without pictures are
                joined one after the other and cut, behind the others; None keeps a row for each.
                Nothing is lost, but B may be another.

        Returns:
            `input_ids` (B, L) int64 with one `<image>` for each picture, `attention_mask` (B, L)
            int64, and `pixel_values` (M, 3, H, W) of all pictures in the order of their `<image>`,
            M may be 0. Without `add_generation_prompt` also `labels` (B, L) int64, -100 wherever it
            is not the assistant who speaks.

        Raises:
            ValueError: there is no conversation, or a message does not fit.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side: expected left or right, got {padding_side!r}")
        if not conversations:
            raise ValueError("conversations: expected at least one, got none")
        checked = [[_message(message) for message in messages] for messages in conversations]
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
            rows = _packed(rows, [_has_picture(messages) for messages in checked], pack_to)
        longest = max(len(row["input_ids"]) for row in rows)

        def stack(name: str, fill: int) -> Tensor:
            padded = []
            for row in rows:
                filling = [fill] * (longest - len(row[name]))
                left = padding_side == "left"
                padded.append(filling + row[name] if left else row[name] + filling)
            return torch.tensor(padded)

        batch = {
            "input_ids": stack("input_ids", self.pad_id),
            "attention_mask": stack("attention_mask", 0),
            "pixel_values": self._pixels(images),
        }
        # What is still to be said has no labels.
        return batch if add_generation_prompt else batch | {"labels": stack("labels", IGNORED)}

    def decode(self, ids: Sequence[int]) -> str:
        """The words of an answer, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer with its template, and `preprocessor_config.json`."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, trust_remote_code: bool = False
    ) -> SetokimProcessor:
        """Reads what `save_pretrained` wrote.

        Args:
            folder: what was written.
            trust_remote_code: run Python code that the folder brings for its tokenizer.

        Raises:
            OSError, ValueError: something is not there, or not what it should be.
        """
        tokenizer = load_pretrained(AutoTokenizer, folder, trust_remote_code)
        template = tokenizer.chat_template or CHAT_TEMPLATE
        return cls(tokenizer, SetokProcessor.from_pretrained(folder), template)

    def _row(self, messages: list[dict], prompt: bool) -> dict[str, list[int]]:
        ids, spoken = self._encode(messages, prompt)
        labels = [token if own else IGNORED for token, own in zip(ids, spoken, strict=True)]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        if not images:
            return torch.zeros(0, 3, *self.image_processor.size)
        return self.image_processor(images)["pixel_values"]


def _has_picture(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(part["type"] == "image" for message in messages for part in message["content"])


def _packed(
    rows: Sequence[dict[str, list[int]]], apart: Sequence[bool], length: int
) -> list[dict[str, list[int]]]:
    """The rows that stay apart, then all others, joined and cut to one length."""
    kept = [row for row, own in zip(rows, apart, strict=True) if own]
    others = [row for row, own in zip(rows, apart, strict=True) if not own]
    joined = {name: [token for row in others for token in row[name]] for name in rows[0]}
    return kept + [
        {name: tokens[start : start + length] for name, tokens in joined.items()}
        for start in range(0, len(joined["input_ids"]), length)
    ]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A checked copy, its content in parts."""
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"role: expected system, user or assistant, got {role!r}")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence) or not parts:
        raise ValueError(f"content: expected a text or parts, got {content!r}")
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image" and isinstance(part.get("image"), Image.Image):
            continue
        if kind == "mask" and role == "assistant":
            continue
        if kind != "text" or not isinstance(part.get("text"), str):
            expected = "parts with a text or a picture, or masks of the assistant"
            raise ValueError(f"content: expected {expected}, got {part!r}")
    if role == "system" and any(part["type"] == "image" for part in parts):
        raise ValueError("content: expected a text of the system, got a picture")
    return {"role": role, "content": list(parts)}
