"""BLEU, the precision of the n-grams of captions.

K. Papineni et al., "BLEU: a method for automatic evaluation of machine translation", 2002; with the
smoothing and the reference lengths of COCO's evaluation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from setokim.evaluation.caption_words import Words, words_of

_MAX_LENGTH = 4
# The official smoothing, which keeps ratios of 0 to 0 close to 0.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> list[float]:
    """Compute BLEU-1 to BLEU-4 over all captions together.

    With c_k the n-grams of length k that captions share with a reference, each at most as often as
    in the reference with the most of them, and g_k all n-grams of the captions:

        BLEU-n = min(1, exp(1 - r / c)) (Π_{k ≤ n} c_k / g_k)^(1/n)

    c is the number of words of the captions, and r that of the references that are closest to their
    caption in length; ties go to the shorter one.

    Args:
        captions: caption of each image; may be an empty text.
        references: reference captions of each image, at least one.

    Returns:
        BLEU-1, BLEU-2, BLEU-3 and BLEU-4, each from 0 to 1.

    Raises:
        ValueError: the images differ, there is none, or one has no reference.
    """
    words, reference_words = words_of(captions, references)
    shared, given = [0] * _MAX_LENGTH, [0] * _MAX_LENGTH
    length = reference_length = 0
    for name, caption in words.items():
        own = reference_words[name]
        length += len(caption)
        reference_length += min((abs(len(one) - len(caption)), len(one)) for one in own)[1]
        for k in range(_MAX_LENGTH):
            grams = _grams(caption, k + 1)
            most: Counter[Words] = Counter()
            for reference in own:
                most |= _grams(reference, k + 1)
            shared[k] += (grams & most).total()
            given[k] += grams.total()
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for k in range(_MAX_LENGTH):
        product *= (shared[k] + _TINY) / (given[k] + _SMALL)
        scores.append(brevity * product ** (1 / (k + 1)))
    return scores


def _grams(words: Words, length: int) -> Counter[Words]:
    return Counter(words[start : start + length] for start in range(len(words) - length + 1))
