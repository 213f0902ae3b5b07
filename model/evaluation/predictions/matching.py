"""Matching of a file's predictions to the samples of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from setokim.evaluation.predictions.prediction import (
    INDEX,
    KINDS,
    OWN,
    POSITION,
    Prediction,
    PredictionError,
)
from setokim.evaluation.predictions.samples import (
    Samples,
    is_asked,
    normal_question,
    question_of,
    reference_of,
    same_identity,
)
from setokim.evaluation.prompting import Prompt, Response

# Kinds that say nothing about the data set: another one has the same numbers.
_WEAK = (INDEX, POSITION)


@dataclass(frozen=True, eq=False)
class Matched:
    """Predictions with the samples that they answer.

    Attributes:
        rows: responses in the order of the data set.
        kind: what identified the questions, one of `KINDS`.
        missing: prompts without a prediction.
        unknown: predictions of no sample.
        duplicates: number of rows that repeat an earlier one.
        others: number of rows of other subsets of the benchmark.
    """

    rows: list[Response]
    kind: str
    missing: list[Prompt]
    unknown: list[Prediction]
    duplicates: int
    others: int


class _MismatchError(Exception):
    """Error for rows that do not answer these samples by one kind of id."""


def match(predictions: Sequence[Prediction], samples: Samples) -> Matched:
    """Find the sample that each prediction answers.

    The kinds of ids are tried in their order until one finds samples. The question of a row, and
    its right answer, must be that of the sample, where both are known. Ids that say nothing about
    the data set need the question. A benchmark of one subset, such as POPE's, may leave over rows
    with other questions if all its own are answered.

    Args:
        predictions: predictions of one file, at least one.
        samples: samples of the benchmark.

    Returns:
        The responses. None of the limits on missing or unknown ones is applied.

    Raises:
        PredictionError: no kind of id finds samples with the rows' questions, or two rows
            contradict each other.
    """
    kept = [one for one in predictions if _is_in_subset(one, samples)]
    others = len(predictions) - len(kept)
    if not kept:
        expected = " or ".join(sorted(samples.categories))
        got = ", ".join(sorted({name for one in predictions for name in one.categories}))
        raise PredictionError(f"category: expected {expected}, got {got}")
    reasons = []
    for kind in KINDS:
        if not all(kind in one.ids for one in kept):
            continue
        try:
            return _matched_by(kind, kept, samples, others)
        except _MismatchError as error:
            reasons.append(str(error))
    if not reasons:
        sources = {kind: [one for one in kept if kind not in one.ids] for kind in KINDS}
        lacking = min(sources.values(), key=len)
        raise PredictionError(f"{lacking[0].source}: expected an id as in the other rows, got none")
    # The first kind is the one that the file is meant to be read by.
    raise PredictionError(reasons[0])


def _is_in_subset(prediction: Prediction, samples: Samples) -> bool:
    if not samples.categories or not prediction.categories:
        return True
    return not samples.categories.isdisjoint(prediction.categories)


def _matched_by(
    kind: str, predictions: Sequence[Prediction], samples: Samples, others: int
) -> Matched:
    found: dict[int, tuple[Prompt, Prediction]] = {}
    # Rows by their id, for those of no sample.
    strangers: dict[object, Prediction] = {}
    duplicates, contradicting, differing = 0, None, []
    for one in predictions:
        candidates = samples.find(kind, one.ids[kind])
        if not candidates:
            duplicates += one.ids[kind] in strangers
            strangers.setdefault(one.ids[kind], one)
            continue
        prompt = _chosen(kind, one, candidates)
        if isinstance(prompt, str):
            differing.append(prompt)
            continue
        _, earlier = found.setdefault(id(prompt), (prompt, one))
        if earlier is not one:
            duplicates += 1
            if contradicting is None and not earlier.same_answer(one):
                contradicting = earlier, one
    if not found and not differing:
        got = f"{predictions[0].ids[kind]!r} in {predictions[0].source}"
        expected = f"{kind} of the data set, such as {samples.example(kind)!r}"
        raise _MismatchError(f"predictions: expected {expected}, got {got}")
    if kind in _WEAK and strangers:
        got = f"{next(iter(strangers))!r} in {next(iter(strangers.values())).source}"
        raise _MismatchError(f"predictions: expected {kind} of the data set for all, got {got}")
    if differing and samples.categories and len(found) == len(samples.prompts):
        # lmms-eval numbers the questions of each subset alike, and does not name the subset.
        others += len(differing)
    elif differing:
        number = f"{len(differing)} of {len(predictions)} rows differ so by their {kind}"
        raise _MismatchError(f"{differing[0]}; {number}")
    if contradicting is not None:
        first, second = contradicting
        expected = f"{second.source}: expected the answer of {first.source} to the same question"
        raise PredictionError(f"{expected}, {first.text!r:.80}, got {second.text!r:.80}")
    rows, missing = [], []
    for prompt in samples.prompts:
        if id(prompt) in found:
            one = found[id(prompt)][1]
            rows.append(Response(prompt, one.text, one.generated, one.mask))
        else:
            missing.append(prompt)
    return Matched(rows, kind, missing, list(strangers.values()), duplicates, others)


def _chosen(kind: str, one: Prediction, candidates: list[Prompt]) -> Prompt | str:
    """Return the candidate that a row answers, or the reason why it answers none."""
    if kind == OWN:
        (prompt,) = candidates
        if one.question == prompt.text and same_identity(prompt, one.facts):
            return prompt
        expected = f"the question of {prompt.source}, {prompt.text!r:.80}"
        return f"{one.source}: expected {expected}, got {one.question!r:.80}"
    asked = None if one.question is None else normal_question(one.question)
    questions = [question_of(prompt) for prompt in candidates]
    if asked is None or None in questions:
        if len(candidates) > 1 or kind in _WEAK:
            expected = f"the question beside {kind} {one.ids[kind]!r}, which alone may mean another"
            return f"{one.source}: expected {expected}, got none"
        (prompt,) = candidates
    else:
        # Programs put instructions around a question. The longest has the others in it.
        fitting = [
            (len(question), prompt)
            for question, prompt in zip(map(normal_question, questions), candidates, strict=True)
            if is_asked(question, asked)
        ]
        if not fitting:
            expected = f"the question of {kind} {one.ids[kind]!r}, {questions[0]!r:.80}"
            return f"{one.source}: expected {expected}, got {one.question!r:.80}"
        longest, prompt = max(fitting, key=lambda pair: pair[0])
        if sum(length == longest for length, _ in fitting) > 1:
            return f"{one.source}: expected one such question, got {len(fitting)} in the data set"
    reference = reference_of(prompt)
    if None not in (reference, one.reference) and _plain(reference) != _plain(one.reference):
        expected = f"{reference!r:.80}, the right answer in {prompt.source}"
        return f"{one.source}: expected {expected}, got {one.reference!r:.80}"
    return prompt


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").lower()
