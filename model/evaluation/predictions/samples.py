"""Identities of a benchmark's samples, by which the rows of a file find their question."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from setokim.data.image_processing import IMAGE_SUFFIXES
from setokim.evaluation.predictions.prediction import (
    IMAGE,
    INDEX,
    OWN,
    POSITION,
    QUESTION_ID,
)
from setokim.evaluation.prompting import Prompt

# Begin of MM-Vet's ids, which LLaVA leaves out.
MM_VET = "v1_"
_COCO = re.compile(r"^COCO_[a-z]+\d+_")
# MME's own end of a question; other programs put theirs in its place.
_MME = "please answer yes or no."
_LINE_END = " \n "
# Signs within a sentence.
_WITHIN = tuple(",;'’-")
_IDENTITY = ("question_id", "image_id", "image", "task", "category")


def question_of(prompt: Prompt) -> str | None:
    """Return the question without its instructions; None for captions and other tasks."""
    if prompt.part != "vqa":
        return None
    return prompt.facts.get("question") or prompt.text.partition("\n")[0]


def reference_of(prompt: Prompt) -> str | None:
    """Return the right answer to a question with a single one that is compared literally."""
    facts = prompt.facts
    if "label" in facts:
        return facts["label"]
    # MM-Vet's answers are for a judge.
    is_single = prompt.part == "vqa" and "capabilities" not in facts
    answers = facts.get("answers") or ()
    return answers[0] if is_single and len(answers) == 1 else None


def question_id_of(prompt: Prompt) -> str | int:
    """Return the id of a question, which for MME is subtask and image, and for captions the image.

    Raises:
        ValueError: the sample has none.
    """
    facts = prompt.facts
    if "question_id" in facts:
        return facts["question_id"]
    if "task" in facts and "image" in facts:
        return f"{facts['task']}/{facts['image']}"
    if "image_id" in facts:
        return facts["image_id"]
    raise ValueError(f"{prompt.source}: expected a sample with an id, got one without")


def identity_of(prompt: Prompt) -> dict[str, Any]:
    """Return the ids among the facts of a sample, with MME's in the form of other programs."""
    known = {name: prompt.facts[name] for name in _IDENTITY if name in prompt.facts}
    if "task" in known:
        known["image"] = f"{known['task']}/{known['image']}"
        known["category"] = known.pop("task")
    return known


def same_identity(prompt: Prompt, facts: Any) -> bool:
    """Return whether the facts of a log have the ids of a sample; those it lacks do not count."""
    return all(
        facts[name] == prompt.facts[name]
        for name in _IDENTITY
        if name in facts and name in prompt.facts
    )


def normal_question(text: str) -> str:
    """Return a question for comparison: in lower case, with single spaces, without MME's end."""
    lines = (" ".join(line.split()) for line in text.lower().split("\n"))
    whole = _LINE_END.join(line for line in lines if line)
    return whole.removesuffix(_MME).rstrip()


def is_asked(question: str, text: str) -> bool:
    """Return whether a text asks a question, with instructions around it.

    "Is it?" is not asked by "What is it?": no word may stand right before it.

    Args:
        question: result of `normal_question`.
        text: result of `normal_question`.
    """
    start = text.find(question)
    while start >= 0:
        before = text[:start].rstrip(" ")[-1:]
        if not before.isalnum() and before not in _WITHIN:
            return True
        start = text.find(question, start + 1)
    return False


class Samples:
    """Prompts of a benchmark by what identifies them.

    Ids match letter by letter, or else as far as programs leave them alone: without the folder,
    suffix and beginning of COCO's file names, MM-Vet's "v1_" and leading zeros.

    Args:
        prompts: prompts in the order of the data set.
    """

    def __init__(self, prompts: Iterable[Prompt]):
        self.prompts = list(prompts)
        self.categories = {one.facts["category"] for one in self.prompts if "category" in one.facts}
        self._exact: dict[tuple[str, Any], list[Prompt]] = {}
        self._loose: dict[tuple[str, str], set[str]] = {}
        for prompt in self.prompts:
            for kind, key in _keys(prompt):
                self._exact.setdefault((kind, key), []).append(prompt)
                if isinstance(key, str):
                    self._loose.setdefault((kind, _loose(key)), set()).add(key)

    def find(self, kind: str, key: Any) -> list[Prompt]:
        """Return the prompts with an id of a kind; several share an image."""
        # The index of VLMEvalKit may be the id.
        kind = QUESTION_ID if kind == INDEX else kind
        if (kind, key) in self._exact or not isinstance(key, str):
            return self._exact.get((kind, key), [])
        for form in (_loose(_last(key, 2)), _loose(_last(key, 1))):
            known = self._loose.get((kind, form), ())
            if len(known) == 1:
                return self._exact[kind, next(iter(known))]
        return []

    def example(self, kind: str) -> Any:
        """Return an id of a kind, for messages; None if there is none."""
        kind = QUESTION_ID if kind == INDEX else kind
        return next((key for one, key in self._exact if one == kind), None)


def _keys(prompt: Prompt) -> Iterable[tuple[str, Any]]:
    yield OWN, (prompt.part, prompt.number, prompt.turn)
    if prompt.turn == 0:
        yield POSITION, prompt.number
    try:
        key = str(question_id_of(prompt))
    except ValueError:
        return
    yield QUESTION_ID, key
    facts = prompt.facts
    if "image" in facts or "image_id" in facts:
        name = str(facts.get("image_id", facts.get("image")))
        yield IMAGE, f"{facts['task']}/{name}" if "task" in facts else name


def _last(key: str, number: int) -> str:
    return "/".join(key.replace("\\", "/").split("/")[-number:])


def _loose(key: str) -> str:
    folder, slash, name = key.rpartition("/")
    path = PurePosixPath(name)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        name = path.stem
    name = _COCO.sub("", name).removeprefix(MM_VET)
    if name.isdecimal():
        name = name.lstrip("0") or "0"
    return f"{folder}{slash}{name}"
