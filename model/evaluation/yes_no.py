"""Scores of yes-or-no benchmarks: POPE and MME."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# C. Fu et al., "MME: A comprehensive evaluation benchmark for multimodal large language models".
MME_PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
MME_COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)


def pope_answer(text: str) -> str:
    """Classify an answer as POPE does: "no" if its first sentence has no or not, else "yes".

    Args:
        text: answer of the model; an empty one is a "yes".
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope_scores(answers: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Compute the metrics of one split of POPE, with "yes" as the positive class.

    Y. Li et al., "Evaluating object hallucination in large vision-language models", 2023.

    Args:
        answers: raw answers of the model.
        labels: "yes" or "no" for each answer.

    Returns:
        `accuracy`, `precision`, `recall`, `f1` and `yes_ratio`, each from 0 to 1; a ratio of 0 to 0
        is 0.

    Raises:
        ValueError: the lengths differ or are 0, or a label is neither.
    """
    if len(answers) != len(labels):
        raise ValueError(f"labels: expected {len(answers)}, one for each answer, got {len(labels)}")
    if not labels:
        raise ValueError("labels: expected at least one, got none")
    for label in labels:
        if label not in ("yes", "no"):
            raise ValueError(f"labels: expected yes or no, got {label!r}")
    predicted = [pope_answer(answer) == "yes" for answer in answers]
    true = [label == "yes" for label in labels]
    hits = sum(a and b for a, b in zip(predicted, true, strict=True))
    precision, recall = _ratio(hits, sum(predicted)), _ratio(hits, sum(true))
    return {
        "accuracy": sum(a == b for a, b in zip(predicted, true, strict=True)) / len(true),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": sum(predicted) / len(predicted),
    }


def mme_answer(text: str) -> str:
    """Classify an answer as MME does: "yes" or "no" by its first four letters, or "other".

    Args:
        text: answer of the model.
    """
    start = text.lower()[:4]
    if start.strip() in ("yes", "no"):
        return start.strip()
    return "yes" if "yes" in start else "no" if "no" in start else "other"


@dataclass(frozen=True)
class MmeRecord:
    """An answer to one of the two questions about an image.

    Attributes:
        task: subtask, such as "existence".
        image: name of the image within the subtask.
        label: "yes" or "no", in any case.
        answer: answer of the model.
    """

    task: str
    image: str
    label: str
    answer: str


def mme_scores(records: Iterable[MmeRecord]) -> dict[str, float]:
    """Compute the scores of MME.

    A subtask's score is the accuracy over questions plus the fraction of images with both questions
    right, in percent: at most 200. Records without a defined score are left out: those of other
    subtasks, and those of an image without both questions, one of which may be damaged or beyond
    the requested samples.

    Args:
        records: records of the answers, two for each image of a subtask.

    Returns:
        `perception`, `cognition` and `total`, sums over subtasks; for each subtask its score, and
        its two parts as `NAME/acc` and `NAME/acc_plus` in percent. Also `left_out`, the number of
        records left out, which comes alone if no record counts.

    Raises:
        ValueError: a label is neither yes nor no.
    """
    tasks: dict[str, dict[str, list[bool]]] = {}
    for record in records:
        label = record.label.lower()
        if label not in ("yes", "no"):
            raise ValueError(f"label: expected yes or no, got {record.label!r}")
        right = mme_answer(record.answer) == label
        tasks.setdefault(record.task, {}).setdefault(record.image, []).append(right)
    number = sum(len(own) for images in tasks.values() for own in images.values())
    scores: dict[str, float] = {}
    judged = 0
    for task in MME_PERCEPTION + MME_COGNITION:
        images = {name: own for name, own in tasks.get(task, {}).items() if len(own) == 2}
        if not images:
            continue
        judged += 2 * len(images)
        right = [answer for found in images.values() for answer in found]
        accuracy = 100 * sum(right) / len(right)
        both = 100 * sum(map(all, images.values())) / len(images)
        scores |= {task: accuracy + both, f"{task}/acc": accuracy, f"{task}/acc_plus": both}
    if not scores:
        return {"left_out": number}
    perception, cognition = (_total(scores, names) for names in (MME_PERCEPTION, MME_COGNITION))
    totals = {"perception": perception, "cognition": cognition, "total": perception + cognition}
    return totals | scores | {"left_out": number - judged}


def _total(scores: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(scores.get(name, 0.0) for name in names)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
