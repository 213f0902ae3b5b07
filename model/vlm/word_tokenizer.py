"""A tokenizer of whole words, for language models small enough to have no other."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Written once here: the beginning of a word, as sentencepiece marks it.
_SPACE = "▁"
_ROLES = ("USER", "ASSISTANT", ":")


def build_word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word or a sign of punctuation is one token; decoding gives the text back.

    Args:
        words: all words and signs that texts may hold; others become "<unk>".

    Returns:
        A tokenizer with "<s>", "</s>", "<pad>" and "<unk>", and the words of the chat template.
    """
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>"]
    for word in (*_ROLES, *sorted(set(words) - set(_ROLES))):
        # A sign may stand by itself too.
        vocabulary += [_SPACE + word] if word.isalnum() else [word, _SPACE + word]
    ids = {word: number for number, word in enumerate(vocabulary)}
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
