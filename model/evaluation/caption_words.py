"""Words of captions and of their references, as the metrics of captions take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from setokim.evaluation.ptb_tokenizer import tokenize_caption

Words = tuple[str, ...]


def words_of(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Words], dict[str, list[Words]]]:
    """Tokenize captions and their references, after a check that they fit.

    Args:
        captions: caption of each image; may be an empty text.
        references: reference captions of each image, at least one.

    Returns:
        Words of the caption and of the references of each image, in the order of each argument.

    Raises:
        ValueError: the images differ, there is none, or one has no reference.
    """
    if captions.keys() != references.keys():
        odd = sorted(map(str, captions.keys() ^ references.keys()))[:5]
        raise ValueError(
            f"captions: expected the images of the references, got a difference of {odd}"
        )
    if not captions:
        raise ValueError("captions: expected at least one, got none")
    for name, texts in references.items():
        if not texts:
            raise ValueError(f"references: expected at least one for {name!r}, got none")
    return (
        {name: _words(text) for name, text in captions.items()},
        {name: [_words(text) for text in texts] for name, texts in references.items()},
    )


# Each metric asks for the words of all captions: about 31,000 of COCO's test split.
@lru_cache(maxsize=1 << 16)
def _words(text: str) -> Words:
    return tuple(tokenize_caption(text))
