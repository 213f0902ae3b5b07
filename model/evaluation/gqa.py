"""Metrics of GQA as in its official evaluation.

D. Hudson and C. Manning, "GQA: A new dataset for real-world visual reasoning and compositional
question answering", 2019.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from setokim.evaluation.figures import Figures
from setokim.evaluation.prompting import Response
from setokim.evaluation.units import units_of
from setokim.evaluation.vqa_answers import bare_answer

# Valid answers to questions about common properties, which the official choices lack.
_COMMON = ("color", "material", "shape")
_BINARY, _OPEN = "binary", "open"


def gqa_metrics(rows: Sequence[Response]) -> Figures:
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
    found = Figures()
    if not balanced:
        return found
    table = found.table(units_of(balanced))
    right = [float(_is_right(row)) for row in balanced]
    table.mean("accuracy", right, "exact matches in lower case, percent", scale=100)
    kinds = [_kinds(row.prompt.facts) for row in balanced]
    for kind in dict.fromkeys(kind for own in kinds for kind in own):
        where = [kind in own for own in kinds]
        table.mean(kind, right, "accuracy of the questions of this kind", where, scale=100)
    for name, choices in (("validity", "valid"), ("plausibility", "plausible")):
        where = [choices in row.prompt.facts for row in balanced]
        if any(where):
            among = [float(_is_among(row, choices)) for row in balanced]
            table.mean(name, among, f"answers among the {choices} ones, percent", where, scale=100)
    consistency = _consistency(balanced, judged)
    if consistency is not None and any(one is not None for one in consistency):
        where = [one is not None for one in consistency]
        rule = "accuracy over the questions that a right answer entails, averaged over these"
        table.mean("consistency", [one or 0.0 for one in consistency], rule, where, scale=100)
    distribution = _distribution(balanced)
    if distribution is not None:
        rule = "chi-square statistic of the answers by group, over 100"
        reason = "it is no ratio of sums over questions"
        found.constant("distribution", distribution, rule, reason)
    return found


def _is_among(row: Response, choices: str) -> bool:
    facts = row.prompt.facts
    possible = _COMMON if _is_common(facts) else facts.get(choices, ())
    return bare_answer(row.text) in possible


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


def _consistency(
    rows: Sequence[Response], all_rows: Sequence[Response]
) -> list[float | None] | None:
    """Return a score for each right answer with entailed questions, None for other rows.

    Without an answer to one of the entailed questions the result is None.
    """
    if not all("entailed" in row.prompt.facts for row in rows):
        return None
    right = {row.prompt.facts["question_id"]: _is_right(row) for row in all_rows}
    scores: list[float | None] = []
    for row in rows:
        facts, score = row.prompt.facts, None
        entailed = [one for one in facts["entailed"] if one != facts["question_id"]]
        if right[facts["question_id"]] and entailed:
            if not right.keys() >= set(entailed):
                return None
            score = fmean(map(right.__getitem__, entailed))
        scores.append(score)
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
