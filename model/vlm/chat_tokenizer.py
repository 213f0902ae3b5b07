"""Chat tokenizer: only the chat template, never the text, yields special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from setokim.data.conversations import SEG
from setokim.utils.text_cleaning import replace_surrogates

# A noncharacter of Unicode, reserved for internal use: interchanged text does not contain it.
_MARK = "\ufdd0"

Messages = Sequence[Mapping[str, Any]]


class ChatTokenizer:
    """Copy of a tokenizer whose special tokens have private names, which no text can contain.

    A tokenizer finds special tokens by name in the rendered chat template. There a "</s>" of the
    template and one of a user look alike. The option `split_special_tokens` splits both, or neither
    if the name is in the base vocabulary. In the copy, and in its copy of the template, each
    special token has a private name; the ids are the same. A special name in a message is thus
    split into ordinary tokens, and all other text keeps its ids.

    Ordinary text of the template, such as "USER:" and "ASSISTANT:" of Vicuna's, stays ordinary: the
    same text of a user has the same ids.

    Args:
        tokenizer: fast tokenizer; not changed.
        chat_template: Jinja template with `generation` around the assistant's text.

    Raises:
        ValueError: the template assembles names of special tokens from pieces.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str):
        names = {
            token.content: None
            for token in tokenizer.added_tokens_decoder.values()
            if token.special
        } | dict.fromkeys(tokenizer.all_special_tokens)
        self._names = {name: f"{_MARK}{i}{_MARK}" for i, name in enumerate(names)}
        self._twin = PreTrainedTokenizerFast(
            tokenizer_object=_rename_tokens(tokenizer.backend_tokenizer, self._names),
            chat_template=self._private(chat_template),
        )
        # Variables of the template, such as bos_token.
        self._variables = {
            variable: self._names[name]
            for variable, name in tokenizer.special_tokens_map.items()
            if isinstance(name, str)
        }
        self._check(tokenizer, chat_template)

    def __call__(
        self, messages: Messages, add_generation_prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        """Tokenize a conversation.

        Args:
            messages: dicts of role and content; the content is a list of parts of type text, image
                or mask.
            add_generation_prompt: flag that appends the header of the assistant's next turn.

        Returns:
            Ids, and a flag for each id that the assistant generates.
        """
        encoded = self._twin.apply_chat_template(
            _template_messages(messages, self._names[SEG]),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )
        return list(encoded["input_ids"]), list(map(bool, encoded["assistant_masks"]))

    def _private(self, text: str) -> str:
        """Replace the names of special tokens in a text by their private names."""
        longest_first = sorted(self._names, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        return re.sub(pattern, lambda match: self._names[match[0]], text)

    def _check(self, tokenizer: PreTrainedTokenizerBase, chat_template: str) -> None:
        """Compare the two templates on plain conversations."""
        parts = [{"type": "text", "text": "a b"}, {"type": "image"}]
        turns = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [*parts, {"type": "mask"}]},
        ]
        options = {"tokenize": False, "add_generation_prompt": True}
        for system in ([], [{"role": "system", "content": parts[:1]}]):
            messages = [*system, *turns]
            try:
                expected = tokenizer.apply_chat_template(
                    _template_messages(messages, SEG), chat_template=chat_template, **options
                )
            except TemplateError:
                continue  # Some templates reject a system message, others require one.
            rendered = self._twin.apply_chat_template(
                _template_messages(messages, self._names[SEG]), **options, **self._variables
            )
            if rendered != self._private(expected):
                required = "a template with the names of special tokens in one piece"
                raise ValueError(f"chat_template: expected {required}, got {chat_template!r}")


def _template_messages(messages: Messages, segment: str) -> list[dict[str, Any]]:
    """Return messages for a template: a mask becomes the text `segment`, so any template fits."""

    def convert(part: Mapping[str, Any]) -> dict[str, Any]:
        if part["type"] == "mask":
            return {"type": "text", "text": segment}
        if part["type"] == "text":
            return {**part, "text": replace_surrogates(part["text"]).replace(_MARK, "\ufffd")}
        return dict(part)

    return [{**message, "content": list(map(convert, message["content"]))} for message in messages]


def _rename_tokens(tokenizer: Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    """Copy a tokenizer with the tokens of `names` renamed, in the base vocabulary too."""
    spec = json.loads(tokenizer.to_str())
    for token in spec["added_tokens"]:
        if token["content"] in names:
            # Normalization could change a name; in old tokenizers it does within a text.
            token |= {"content": names[token["content"]], "normalized": False}
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(word, word): i for word, i in model["vocab"].items()}
    else:  # Unigram: pairs of word and score
        model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        # No merge may yield a renamed token or contain one.
        model["merges"] = [
            pair for pair in model["merges"] if not {*pair, "".join(pair)} & names.keys()
        ]
    return Tokenizer.from_str(json.dumps(spec))
