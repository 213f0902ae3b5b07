"""Lemmas of answers, which BLIP-2 compares with those of the annotators of OK-VQA."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from setok_kernels.extras import from_extra
from setokim.evaluation.figures import Figures
from setokim.evaluation.prompting import Response

Metrics = Callable[[Sequence[Response]], Figures]


def lemmatized(text: str) -> str:
    """Replace each word by its lemma, "two dogs running" by "two dog run".

    LAVIS, the code of BLIP-2 (J. Li et al., 2023), takes the lemmas of nouns and verbs from spaCy,
    whose tagger sees the whole answer. The dictionary here knows no parts of speech, so that some
    adjectives change as well: "striped" becomes "stripe" here alone.

    Args:
        text: answer of the model.

    Raises:
        ImportError: simplemma is not installed.
    """
    with from_extra("eval"):
        import simplemma
    return " ".join(simplemma.lemmatize(word, lang="en") for word in text.split())


def with_lemmas(metrics: Metrics) -> Metrics:
    """Add to metrics those of the lemmatized answers, as `NAME/lemmatized`.

    The right answers stay as they are, also as by LAVIS.

    Args:
        metrics: function from responses to their metrics.
    """

    def both(rows: Sequence[Response]) -> Figures:
        found = metrics(rows)
        own = [dataclasses.replace(row, text=lemmatized(row.text)) for row in rows]
        found.include(metrics(own), "lemmatized")
        return found

    return both
