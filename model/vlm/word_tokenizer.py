"""Tokenizer of whole words for tiny language models without a tokenizer of their own."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Start of a word, as marked by sentencepiece.
_SPACE = "▁"
_ROLES = ("USER", "ASSISTANT", ":")


def build_word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each word or punctuation mark; decoding is exact.

    Args:
        words: vocabulary of words and punctuation marks; all others become "<unk>".

    Returns:
        Tokenizer with the vocabulary, "<s>", "</s>", "<pad>", "<unk>", and the roles of the chat
        template.
    """
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>"]
    for word in (*_ROLES, *sorted(set(words) - set(_ROLES))):
        # A punctuation mark may follow a word without a space.
        vocabulary += [_SPACE + word] if word.isalnum() else [word, _SPACE + word]
    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
