"""CIDEr-D, the agreement of captions with reference captions.

R. Vedantam, C. L. Zitnick and D. Parikh, "CIDEr: Consensus-based image description evaluation",
2015; with the clipping and the length penalty of its variant D, as in all published metrics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from setokim.evaluation.caption_words import Words, words_of

_MAX_LENGTH = 4
_SIGMA = 6.0
_Grams = Counter[tuple[str, ...]]


def cider(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """Compute CIDEr-D of captions, with the weights of words taken from the references.

    Args:
        captions: caption of each image; may be an empty text.
        references: reference captions of each image, at least one.

    Returns:
        The mean over images, usually 0 to 2, at most 10; and the score of each image.

    Raises:
        ValueError: the images differ, there is none, or one has no reference.
    """
    words, reference_words = words_of(captions, references)
    counted: dict[str, list[_Grams]] = {
        name: [_grams(one) for one in own] for name, own in reference_words.items()
    }
    # Number of images whose references contain each n-gram.
    found_in: _Grams = Counter()
    for grams in counted.values():
        found_in.update(set().union(*grams))
    log_images = math.log(len(counted))
    weights = {gram: log_images - math.log(number) for gram, number in found_in.items()}
    scores = {
        name: _score(_grams(one), counted[name], weights, log_images) for name, one in words.items()
    }
    return sum(scores.values()) / len(scores), scores


def _grams(words: Words) -> _Grams:
    return Counter(
        words[start : start + length]
        for length in range(1, _MAX_LENGTH + 1)
        for start in range(len(words) - length + 1)
    )


def _score(caption: _Grams, references: list[_Grams], weights: Mapping, unknown: float) -> float:
    """Average over the references and the lengths of n-grams, times 10."""
    candidate, total = _vectors(caption, weights, unknown), 0.0
    for reference in references:
        reference_vectors = _vectors(reference, weights, unknown)
        # The official code takes the number of words from the bigrams.
        apart = _number(caption, 2) - _number(reference, 2)
        penalty = math.exp(-(apart**2) / (2 * _SIGMA**2))
        total += penalty * sum(map(_clipped_cosine, candidate, reference_vectors)) / _MAX_LENGTH
    return 10.0 * total / len(references)


def _vectors(grams: _Grams, weights: Mapping, unknown: float) -> list[dict]:
    vectors: list[dict] = [{} for _ in range(_MAX_LENGTH)]
    for gram, number in grams.items():
        vectors[len(gram) - 1][gram] = number * weights.get(gram, unknown)
    return vectors


def _clipped_cosine(candidate: dict, reference_vectors: dict) -> float:
    """Compute the cosine with each candidate weight clipped to the reference's weight."""
    product = sum(
        min(value, reference_vectors.get(gram, 0.0)) * reference_vectors.get(gram, 0.0)
        for gram, value in candidate.items()
    )
    norms = math.hypot(*candidate.values()) * math.hypot(*reference_vectors.values())
    return product / norms if norms else product


def _number(grams: _Grams, length: int) -> int:
    return sum(number for gram, number in grams.items() if len(gram) == length)
