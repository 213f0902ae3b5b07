"""Metrics of generated captions, as published for COCO and Flickr30K."""

from __future__ import annotations

from collections.abc import Sequence

from setokim.evaluation.bleu import bleu
from setokim.evaluation.cider import cider
from setokim.evaluation.meteor import meteor, missing_meteor
from setokim.evaluation.prompting import Response
from setokim.evaluation.rouge import rouge_l


def caption_metrics(rows: Sequence[Response]) -> dict[str, float]:
    """Compute CIDEr-D, BLEU-1 to BLEU-4, ROUGE-L and, where it can be, METEOR, in percent.

    Args:
        rows: responses with the facts "image_id" and "answers", the reference captions.

    Returns:
        `cider`, `bleu_1` to `bleu_4`, `rouge_l`, and `meteor` unless `missing_meteor` says why not.
    """
    captions = {str(row.prompt.facts["image_id"]): row.text for row in rows}
    references = {str(row.prompt.facts["image_id"]): row.prompt.facts["answers"] for row in rows}
    scores = {"cider": cider(captions, references)[0]}
    scores |= {f"bleu_{n}": score for n, score in enumerate(bleu(captions, references), 1)}
    scores["rouge_l"] = rouge_l(captions, references)[0]
    if missing_meteor() is None:
        scores["meteor"] = meteor(captions, references)
    return {name: 100 * score for name, score in scores.items()}
