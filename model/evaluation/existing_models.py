"""Vision-language models of transformers from local folders: prompts and greedy answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from setokim.utils.pretrained import load_pretrained, load_whole


@dataclass(frozen=True)
class Generated:
    """Greedy answers of a batch.

    Attributes:
        ids: (B, n) new tokens, padded at the end; the prompt is not among them.
        prompt_tokens: number of positions of the prompt in the language model, padding included.
        cache_bytes: bytes of keys and values of all layers after the answer.
    """

    ids: Tensor
    prompt_tokens: int
    cache_bytes: int


class ExistingModel:
    """A vision-language model of transformers in evaluation mode, with its processor.

    Args:
        model: model that generates text, on its device.
        processor: processor of the model.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model.eval(), processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        # Answers of a batch begin at one position.
        self._tokenizer.padding_side = "left"

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> ExistingModel:
        """Load a folder in the dtype of its weights, without a network and without foreign code.

        Args:
            folder: folder with the weights and the processor of a model.
            device: device of the model.

        Raises:
            ValueError: the folder has no such model, or its files are damaged or incomplete.
            ImportError: a package is missing.
        """
        try:
            model = load_whole(AutoModelForImageTextToText, folder, dtype="auto")
            processor = load_pretrained(AutoProcessor, Path(folder), local_files_only=True)
        except (ImportError, ValueError) as error:
            if "Unrecognized configuration class" in str(error):
                # The message of transformers lists a hundred classes.
                kind = json.loads((Path(folder) / "config.json").read_text()).get("model_type")
                raise ValueError(
                    f"expected a model that reads images and text, got one of type {kind!r}"
                ) from error
            if "torchvision" not in str(error).lower():
                raise
            raise ImportError(
                "its processor needs torchvision, in the build that matches torch "
                f"{torch.__version__}: https://pytorch.org/get-started has the command"
            ) from error
        return cls(model.to(device), processor)

    def inputs(self, conversations: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Tensor]:
        """Return the inputs of `generate` for conversations that end with the user.

        Args:
            conversations: messages in the chat format of Hugging Face with images of PIL. Without
                a chat template, the prompt is the placeholders of the images and the text.

        Raises:
            ValueError: the processor has no image token for a prompt without a template.
        """
        options = {"padding": True, "return_tensors": "pt"}
        template = getattr(self.processor, "chat_template", None)
        if template or getattr(self._tokenizer, "chat_template", None):
            found = self.processor.apply_chat_template(
                [list(messages) for messages in conversations],
                tokenize=True,
                add_generation_prompt=True,
                return_dict=True,
                processor_kwargs=options,
            )
        else:
            texts, images = zip(*map(self._plain, conversations), strict=True)
            shown = [list(one) for one in images] if any(images) else None
            found = self.processor(text=list(texts), images=shown, **options)
        return dict(found.to(self.model.device, self.model.dtype))

    def count_visual(self, inputs: dict[str, Tensor]) -> int:
        """Return the number of placeholders of visual tokens in prompts.

        Raises:
            ValueError: the configuration names no placeholder.
        """
        config = self.model.config
        names = ("image_token_id", "image_token_index")
        token = next((getattr(config, n) for n in names if getattr(config, n, None)), None)
        if token is None:
            raise ValueError(
                f"config: expected an image_token_id, got none in {type(config).__name__}"
            )
        return int((inputs["input_ids"] == token).sum())

    @torch.inference_mode()
    def generate(self, inputs: dict[str, Tensor], max_new_tokens: int) -> Generated:
        """Return the most probable answers, token by token.

        Args:
            inputs: inputs as of `inputs`.
            max_new_tokens: max number of tokens of an answer.
        """
        found = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            return_dict_in_generate=True,
        )
        new = found.sequences[:, inputs["input_ids"].shape[1] :]
        # The last new token was never an input.
        prompt = found.past_key_values.get_seq_length() - new.shape[1] + 1
        return Generated(new, prompt, sum(t.nbytes for t in _tensors_of(found.past_key_values)))

    def decode(self, ids: Tensor) -> list[str]:
        """Return the text of each answer of a batch."""
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _plain(self, messages: Sequence[dict[str, Any]]) -> tuple[str, list[Any]]:
        parts = [part for message in messages for part in message["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        token = getattr(self.processor, "image_token", None)
        if images and not isinstance(token, str):
            raise ValueError("processor: expected a chat template or an image_token, got neither")
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        return f"{token}" * len(images) + text, images


def _tensors_of(cache: Any) -> Iterator[Tensor]:
    for layer in cache.layers:
        yield from (value for value in vars(layer).values() if isinstance(value, Tensor))
