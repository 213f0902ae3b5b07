"""ROUGE-L, the longest common subsequence of captions and their references.

C.-Y. Lin, "ROUGE: A package for automatic evaluation of summaries", 2004; with the weight of recall
and the choice of references of COCO's evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from setokim.evaluation.caption_words import Words, words_of

_BETA = 1.2


def rouge_l(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """Compute ROUGE-L: (1 + β²) P R / (R + β² P), with β = 1.2.

    P is the length of the longest common subsequence over that of the caption, and R over that of
    the reference. Each is the maximum over the references, which need not be the same one.

    Args:
        captions: caption of each image; may be an empty text.
        references: reference captions of each image, at least one.

    Returns:
        The mean over images, and the score of each image, from 0 to 1.

    Raises:
        ValueError: the images differ, there is none, or one has no reference.
    """
    words, reference_words = words_of(captions, references)
    scores = {name: _score(caption, reference_words[name]) for name, caption in words.items()}
    return fmean(scores.values()), scores


def _score(caption: Words, references: Sequence[Words]) -> float:
    # The official code takes an empty text for one empty word.
    caption = caption or ("",)
    common = [(_common(caption, one or ("",)), len(one) or 1) for one in references]
    precision = max(number for number, _ in common) / len(caption)
    recall = max(number / length for number, length in common)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(a: Words, b: Words) -> int:
    """Return the length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for i, other in enumerate(b, 1):
            above = lengths[i]
            lengths[i] = before + 1 if word == other else max(above, lengths[i - 1])
            before = above
    return lengths[-1]
