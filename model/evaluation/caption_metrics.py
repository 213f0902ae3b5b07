"""Metrics of generated captions, as published for COCO and Flickr30K."""

from __future__ import annotations

from collections.abc import Sequence

from setokim.evaluation.bleu import bleu, bleu_counts
from setokim.evaluation.cider import cider
from setokim.evaluation.figures import Figures
from setokim.evaluation.meteor import meteor, missing_meteor
from setokim.evaluation.prompting import Response
from setokim.evaluation.rouge import rouge_l


def caption_metrics(rows: Sequence[Response]) -> Figures:
    """Compute CIDEr-D, BLEU-1 to BLEU-4, ROUGE-L and, where it can be, METEOR, in percent.

    Args:
        rows: responses with the facts "image_id" and "answers", the reference captions.

    Returns:
        `cider`, `bleu_1` to `bleu_4`, `rouge_l`, and `meteor` unless `missing_meteor` says why not.
    """
    captions = {str(row.prompt.facts["image_id"]): row.text for row in rows}
    references = {str(row.prompt.facts["image_id"]): row.prompt.facts["answers"] for row in rows}
    found = Figures()
    scores = cider(captions, references)[1]
    table = found.table(list(scores), "image")
    rule = (
        "CIDEr-D times 100; a resample keeps the document frequencies of all references of the run"
    )
    table.mean("cider", list(scores.values()), rule, scale=100)
    counts = bleu_counts(captions, references)
    for n, score in enumerate(bleu(counts), 1):
        grams = counts.shared[:n], counts.given[:n]
        rule = f"BLEU-{n} of all captions together, percent"
        lengths = counts.lengths, counts.reference_lengths
        table.bleu(f"bleu_{n}", 100 * score, *grams, *lengths, rule, scale=100)
    scores = rouge_l(captions, references)[1]
    rule = "mean ROUGE-L of a caption, percent"
    table.mean("rouge_l", [scores[name] for name in captions], rule, scale=100)
    reason = missing_meteor()
    if reason is None:
        rule = "METEOR 1.5 of all captions together, percent"
        value = 100 * meteor(captions, references)
        found.constant("meteor", value, rule, "it is of all captions together")
    else:
        found.left_out["meteor"] = reason
    return found
