"""CIDEr-D, how much a caption says what people say of the picture.

R. Vedantam, C. L. Zitnick and D. Parikh, "CIDEr: Consensus-based image description evaluation",
2015; with the clipping and the length penalty of its variant D, as all published figures have them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from setokim.evaluation.ptb_tokenizer import tokenize_caption

_LONGEST = 4
_SIGMA = 6.0
_Grams = Counter[tuple[str, ...]]


def cider(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """CIDEr-D of captions, the weights of words taken from the references.

    Args:
        captions: one for each picture; may be empty texts.
        references: at least one for each picture.

    Returns:
        The mean over pictures, usually 0 to 2, at most 10; and each picture's.

    Raises:
        ValueError: the pictures are not the same, there is none, or one has no reference.
    """
    if captions.keys() != references.keys():
        odd = sorted(map(str, captions.keys() ^ references.keys()))[:5]
        raise ValueError(f"captions: expected the pictures of the references, these differ: {odd}")
    if not captions:
        raise ValueError("captions: expected at least one, got none")
    cooked: dict[str, list[_Grams]] = {}
    for name, texts in references.items():
        if not texts:
            raise ValueError(f"references: expected at least one for {name!r}, got none")
        cooked[name] = [_grams(text) for text in texts]
    # In how many pictures' references each is found.
    found_in: _Grams = Counter()
    for grams in cooked.values():
        found_in.update(set().union(*grams))
    log_pictures = math.log(len(cooked))
    weights = {gram: log_pictures - math.log(number) for gram, number in found_in.items()}
    scores = {
        name: _score(_grams(text), cooked[name], weights, log_pictures)
        for name, text in captions.items()
    }
    return sum(scores.values()) / len(scores), scores


def _grams(text: str) -> _Grams:
    words = tokenize_caption(text)
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, _LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


def _score(caption: _Grams, references: list[_Grams], weights: Mapping, unknown: float) -> float:
    """Mean over the references and the lengths of n-grams, times 10."""
    said, total = _vectors(caption, weights, unknown), 0.0
    for reference in references:
        meant = _vectors(reference, weights, unknown)
        # The official code takes the number of words from the bigrams.
        apart = _number(caption, 2) - _number(reference, 2)
        penalty = math.exp(-(apart**2) / (2 * _SIGMA**2))
        total += penalty * sum(map(_clipped_cosine, said, meant)) / _LONGEST
    return 10.0 * total / len(references)


def _vectors(grams: _Grams, weights: Mapping, unknown: float) -> list[dict]:
    vectors: list[dict] = [{} for _ in range(_LONGEST)]
    for gram, number in grams.items():
        vectors[len(gram) - 1][gram] = number * weights.get(gram, unknown)
    return vectors


def _clipped_cosine(said: dict, meant: dict) -> float:
    """What is said more often than meant counts no more than meant."""
    product = sum(
        min(value, meant.get(gram, 0.0)) * meant.get(gram, 0.0) for gram, value in said.items()
    )
    norms = math.hypot(*said.values()) * math.hypot(*meant.values())
    return product / norms if norms else product


def _number(grams: _Grams, length: int) -> int:
    return sum(number for gram, number in grams.items() if len(gram) == length)
