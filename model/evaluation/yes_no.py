"""Scores of yes-or-no benchmarks: POPE and MME."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from setokim.evaluation.figures import Figures

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


def pope_scores(
    answers: Sequence[str], labels: Sequence[str], units: Sequence[str] | None = None
) -> Figures:
    """Compute the metrics of one split of POPE, with "yes" as the positive class.

    Y. Li et al., "Evaluating object hallucination in large vision-language models", 2023.

    Args:
        answers: raw answers of the model.
        labels: "yes" or "no" for each answer.
        units: name of each question; None for its index.

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
    hits = [a and b for a, b in zip(predicted, true, strict=True)]
    equal = [a == b for a, b in zip(predicted, true, strict=True)]
    either = [a + b for a, b in zip(predicted, true, strict=True)]
    found = Figures()
    table = found.table([str(index) for index in range(len(true))] if units is None else units)
    table.mean("accuracy", equal, "fraction of right answers")
    table.ratio("precision", hits, predicted, "fraction of yes that is right", empty=0.0)
    table.ratio("recall", hits, true, "fraction of objects with a yes", empty=0.0)
    table.ratio("f1", hits, either, "harmonic mean of precision and recall", 2.0, empty=0.0)
    table.mean("yes_ratio", predicted, "fraction of yes")
    return found


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


def mme_scores(records: Iterable[MmeRecord]) -> Figures:
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
    found = Figures()
    judged = 0
    for task in MME_PERCEPTION + MME_COGNITION:
        images = {name: own for name, own in tasks.get(task, {}).items() if len(own) == 2}
        if not images:
            continue
        judged += 2 * len(images)
        # The subtasks are the same in every test set, and have a table each.
        table = found.table(list(images), "image", task)
        counts, both = [sum(own) / 2 for own in images.values()], [*map(all, images.values())]
        table.mean(f"{task}/acc", counts, "right answers, percent", scale=100)
        rule = "images with both questions right, percent"
        table.mean(f"{task}/acc_plus", both, rule, scale=100)
        found.total(task, [f"{task}/acc", f"{task}/acc_plus"], "accuracy plus accuracy+, percent")
    if judged:
        for name, tasks_of in {"perception": MME_PERCEPTION, "cognition": MME_COGNITION}.items():
            found.total(name, [task for task in tasks_of if task in found], f"sum of {name} tasks")
        every = [task for task in MME_PERCEPTION + MME_COGNITION if task in found]
        found.total("total", every, "perception plus cognition")
    rule = "answers without a score: of other tasks, or of an image without both questions"
    found.constant("left_out", number - judged, rule)
    return found
