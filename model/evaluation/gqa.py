"""Metrics of GQA as in its official evaluation.

D. Hudson and C. Manning, "GQA: A new dataset for real-world visual reasoning and compositional
question answering", 2019.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from setokim.evaluation.prompting import Response
from setokim.evaluation.vqa_answers import bare_answer

# Valid answers to questions about common properties, which the official choices lack.
_COMMON = ("color", "material", "shape")
_BINARY, _OPEN = "binary", "open"


def gqa_metrics(rows: Sequence[Response]) -> dict[str, float]:
    """Compute the accuracy of GQA, and the other official metrics where the files allow.

    Metrics are over the balanced questions; questions that do not say whether they are balanced
    count as such. Answers are compared letter by letter, in lower case and without a final full
    stop.

    Args:
        rows: responses to questions of GQA, at least one of them with an answer.

    Returns:
        `accuracy`, and those of the following with the fields they need, in percent unless named:

        - with types: `binary` and `open`, accuracy of the questions of that kind, and
          `accuracy/TYPE` of each structural and semantic type;
        - with choices: `validity` and `plausibility`, the fraction of answers among the possible
          ones of the question, and among those that occur with such objects;
        - with groups: `distribution`, the chi-square statistic of answers, by group, over 100
          (lower is better, no percentage);
        - with answers to all entailed questions: `consistency`, the accuracy over the questions
          that a right answer entails, averaged over the right answers.
    """
    judged = [row for row in rows if row.prompt.facts["answers"]]
    balanced = [row for row in judged if row.prompt.facts.get("balanced", True)]
    scores: dict[str, list[float]] = {"accuracy": []}
    for row in balanced:
        facts = row.prompt.facts
        score = float(_is_right(row))
        scores["accuracy"].append(score)
        for name in _kinds(facts):
            scores.setdefault(name, []).append(score)
        for name, choices in (("validity", "valid"), ("plausibility", "plausible")):
            if choices in facts:
                possible = _COMMON if _is_common(facts) else facts[choices]
                scores.setdefault(name, []).append(float(bare_answer(row.text) in possible))
    consistency = _consistency(balanced, judged)
    if consistency is not None:
        scores["consistency"] = consistency
    metrics = {name: 100 * fmean(own) for name, own in scores.items() if own}
    distribution = _distribution(balanced)
    return metrics if distribution is None else metrics | {"distribution": distribution}


def _is_right(row: Response) -> bool:
    return bare_answer(row.text) == row.prompt.facts["answers"][0]


def _kinds(facts: Mapping[str, Any]) -> list[str]:
    """Return the names of the accuracies that a question counts for."""
    if "types" not in facts:
        return []
    structural, semantic = facts["types"]["structural"], facts["types"]["semantic"]
    kind = _OPEN if structural == "query" else _BINARY
    return [kind, f"accuracy/{structural}", f"accuracy/{semantic}"]


def _is_common(facts: Mapping[str, Any]) -> bool:
    return "Common" in facts.get("types", {}).get("detailed", "")


def _consistency(rows: Sequence[Response], all_rows: Sequence[Response]) -> list[float] | None:
    """Return a score for each right answer with entailed questions; None if one has no answer."""
    if not all("entailed" in row.prompt.facts for row in rows):
        return None
    right = {row.prompt.facts["question_id"]: _is_right(row) for row in all_rows}
    scores = []
    for row in rows:
        facts = row.prompt.facts
        entailed = [one for one in facts["entailed"] if one != facts["question_id"]]
        if right[facts["question_id"]] and entailed:
            if not right.keys() >= set(entailed):
                return None
            scores.append(fmean(map(right.__getitem__, entailed)))
    return scores


def _distribution(rows: Sequence[Response]) -> float | None:
    """Return the chi-square statistic, weighted by the sizes of the groups; None without groups."""
    true: defaultdict[str, Counter[str]] = defaultdict(Counter)
    predicted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        group = row.prompt.facts.get("group")
        if group is not None:
            true[group][row.prompt.facts["answers"][0]] += 1
            predicted[group][bare_answer(row.text)] += 1
    if not true:
        return None
    weighted = sum(
        own.total() * sum((predicted[group][text] - n) ** 2 / n for text, n in own.items())
        for group, own in true.items()
    )
    return weighted / sum(own.total() for own in true.values()) / 100
