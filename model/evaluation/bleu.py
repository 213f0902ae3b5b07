"""BLEU, the precision of the n-grams of captions.

K. Papineni et al., "BLEU: a method for automatic evaluation of machine translation", 2002; with the
smoothing and the reference lengths of COCO's evaluation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from setokim.evaluation.caption_words import Words, words_of

_MAX_LENGTH = 4
# The official smoothing, which keeps ratios of 0 to 0 close to 0.
_TINY, _SMALL = 1e-15, 1e-9


@dataclass(frozen=True)
class BleuCounts:
    """Counts of each caption, in their order.

    Attributes:
        shared: numbers by length k of n-grams that a caption shares with a reference, each at most
            as often as in the reference with the most of them.
        given: numbers by length k of all n-grams of a caption.
        lengths: words of a caption.
        reference_lengths: words of the reference that is closest to the caption in length; ties go
            to the shorter one.
    """

    shared: tuple[list[int], ...]
    given: tuple[list[int], ...]
    lengths: list[int]
    reference_lengths: list[int]


def bleu_counts(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> BleuCounts:
    """Count the n-grams of captions and those shared with their references.

    Args:
        captions: caption of each image; may be an empty text.
        references: reference captions of each image, at least one.

    Raises:
        ValueError: the images differ, there is none, or one has no reference.
    """
    words, reference_words = words_of(captions, references)
    empty: tuple[list[int], ...] = tuple([] for _ in range(_MAX_LENGTH))
    counts = BleuCounts(empty, tuple([] for _ in range(_MAX_LENGTH)), [], [])
    for name, caption in words.items():
        own = reference_words[name]
        counts.lengths.append(len(caption))
        closest = min((abs(len(one) - len(caption)), len(one)) for one in own)[1]
        counts.reference_lengths.append(closest)
        for k in range(_MAX_LENGTH):
            grams = _grams(caption, k + 1)
            most: Counter[Words] = Counter()
            for reference in own:
                most |= _grams(reference, k + 1)
            counts.shared[k].append((grams & most).total())
            counts.given[k].append(grams.total())
    return counts


def bleu(counts: BleuCounts) -> list[float]:
    """Compute BLEU-1 to BLEU-4 over all captions together.

    With c_k the shared and g_k the given n-grams of length k, r the words of the closest references
    and c those of the captions:

        BLEU-n = min(1, exp(1 - r / c)) (Π_{k ≤ n} c_k / g_k)^(1/n)

    Returns:
        BLEU-1, BLEU-2, BLEU-3 and BLEU-4, each from 0 to 1.
    """
    ratio = (sum(counts.lengths) + _TINY) / (sum(counts.reference_lengths) + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for k, (shared, given) in enumerate(zip(counts.shared, counts.given, strict=True), 1):
        product *= (sum(shared) + _TINY) / (sum(given) + _SMALL)
        scores.append(brevity * product ** (1 / k))
    return scores


def _grams(words: Words, length: int) -> Counter[Words]:
    return Counter(words[start : start + length] for start in range(len(words) - length + 1))
