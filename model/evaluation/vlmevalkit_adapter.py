"""Adapter that lets VLMEvalKit run SeTokim; docs/scoring.md has its registration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from vlmeval.vlm.base import BaseModel

from setokim.data.conversations import message
from setokim.data.image_processing import load_image
from setokim.evaluation.prompting import generate_answers
from setokim.utils.pretrained import load_whole
from setokim.vlm.generation_config import SetokimGenerationConfig
from setokim.vlm.modeling_setokim import SetokimModel
from setokim.vlm.processing_setokim import SetokimProcessor


class Setokim(BaseModel):
    """Model of VLMEvalKit with a trained SeTokim, which decodes greedily.

    Questions are those that VLMEvalKit builds for a data set. `generate` of the base class checks a
    message and passes it to `generate_inner`.

    Args:
        model_path: folder of a model, as written by `setok train`.
        max_new_tokens: max length of an answer in tokens.
        device: device of the model; None for a GPU if there is one.

    Raises:
        OSError: the model cannot be read.
        TypeError, ValueError: the folder has no such model, or the length is not positive.
    """

    # Images and texts may alternate.
    INTERLEAVE = True

    def __init__(self, model_path: str, max_new_tokens: int = 512, device: str | None = None):
        super().__init__()
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._config = SetokimGenerationConfig(max_new_tokens=max_new_tokens)
        # A missing folder must not be taken for a name on the hub.
        self.model = load_whole(SetokimModel, model_path).to(device).eval()
        self.processor = SetokimProcessor.from_pretrained(model_path)

    def generate_inner(
        self, message: Sequence[Mapping[str, str]], dataset: str | None = None
    ) -> str:
        """Return the answer to a message.

        Args:
            message: parts {"type": "image" or "text", "value": path or text}, at least one.
            dataset: name of the data set, on which the answer does not depend.

        Raises:
            ValueError: a part is of another type, or an image cannot be read.
        """
        (answer,) = generate_answers(
            self.model, self.processor, [_conversation(message)], self._config
        )
        return self.processor.decode(answer.ids).strip()


def _conversation(parts: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    found: list[Any] = []
    for part in parts:
        if part["type"] == "image":
            found.append(load_image(Path(part["value"])))
        elif part["type"] == "text":
            found.append(part["value"])
        else:
            raise ValueError(f"message: expected image or text, got {part['type']!r}")
    if not found:
        raise ValueError("message: expected at least one part, got none")
    return [message("user", *found)]
