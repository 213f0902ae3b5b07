"""Conversations to token ids in which special tokens come from the chat template alone."""

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

# A noncharacter of Unicode: meant for the inside of programs, and in no text that they exchange.
_MARK = "\ufdd0"

Messages = Sequence[Mapping[str, Any]]


class ChatTokenizer:
    """Twin of a tokenizer whose special tokens have private names, which no text can spell.

    A tokenizer finds special tokens by their names in what the chat template renders. There the
    template's own "</s>" and that of a user look alike, and option `split_special_tokens` splits
    both, or neither where the name is in the base vocabulary. In the twin and in its copy of the
    template, every special token has a private name instead; ids are the same. A name in a
    message's text is then split into ordinary tokens, and other text has the same ids as before.

    The template's ordinary words, such as "USER:" and "ASSISTANT:" of Vicuna's, are ordinary tokens
    whoever writes them; nothing tells a user's apart.

    Args:
        tokenizer: fast tokenizer; not changed.
        chat_template: Jinja template with `generation` around the assistant's words.

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
            tokenizer_object=_renamed(tokenizer.backend_tokenizer, self._names),
            chat_template=self._private(chat_template),
        )
        # What the template calls bos_token and so on.
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
            messages: dicts of role and parts, the parts of type text, image or mask.
            add_generation_prompt: end with the words after which the assistant speaks.

        Returns:
            The ids, and for each whether the assistant says it.
        """
        found = self._twin.apply_chat_template(
            _given(messages, self._names[SEG]),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )
        return list(found["input_ids"]), [bool(own) for own in found["assistant_masks"]]

    def _private(self, text: str) -> str:
        """The text with the private names of special tokens."""
        longest_first = sorted(self._names, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        return re.sub(pattern, lambda found: self._names[found[0]], text)

    def _check(self, tokenizer: PreTrainedTokenizerBase, chat_template: str) -> None:
        """Compare what the two templates make of plain conversations."""
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
                    _given(messages, SEG), chat_template=chat_template, **options
                )
            except TemplateError:
                continue  # Some templates refuse a system message, others demand one.
            found = self._twin.apply_chat_template(
                _given(messages, self._names[SEG]), **options, **self._variables
            )
            if found != self._private(expected):
                wanted = "a template with the names of special tokens in one piece"
                raise ValueError(f"chat_template: expected {wanted}, got {chat_template!r}")


def _given(messages: Messages, segment: str) -> list[dict[str, Any]]:
    """What a template is given: a mask is the text `segment`, so that any template can place it."""

    def part_of(part: Mapping[str, Any]) -> dict[str, Any]:
        if part["type"] == "mask":
            return {"type": "text", "text": segment}
        if part["type"] == "text":
            return {**part, "text": replace_surrogates(part["text"]).replace(_MARK, "\ufffd")}
        return dict(part)

    return [{**message, "content": list(map(part_of, message["content"]))} for message in messages]


def _renamed(tokenizer: Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    """A copy in which the tokens of `names` have other names, in the base vocabulary too."""
    spec = json.loads(tokenizer.to_str())
    for token in spec["added_tokens"]:
        if token["content"] in names:
            # Normalization could change a name, and does in the middle of a text in old tokenizers.
            token |= {"content": names[token["content"]], "normalized": False}
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(word, word): i for word, i in model["vocab"].items()}
    else:  # Unigram: pairs of word and score
        model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        # No merge may make such a token, or be made of it.
        model["merges"] = [
            pair for pair in model["merges"] if not {*pair, "".join(pair)} & names.keys()
        ]
    return Tokenizer.from_str(json.dumps(spec))
