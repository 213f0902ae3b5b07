"""Questions about images: VQAv2, OK-VQA, A-OKVQA, GQA and MM-Vet in their published files."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from pathlib import Path
from typing import Any

from setokim.data.conversations import Conversation, message
from setokim.data.file_dataset import FileDataset
from setokim.data.readers.files import (
    by_key,
    check_root,
    field_of,
    file_in,
    find_file,
    read_image,
)
from setokim.data.records import JsonList, Records, read_json
from setokim.data.samples import BrokenSampleError

# Prompt of LLaVA 1.5 for answers that are compared letter by letter.
SHORT = "Answer the question using a single word or phrase."
# One choice for each letter.
_MAX_CHOICES = 26
_LETTER = "Answer with the option's letter from the given choices directly."


class Questions(FileDataset):
    """One question a sample, with its image; `facts` holds values for the evaluation.

    The assistant's answer is the most frequent one, ties the first, and empty if the file has none.
    """

    _root: Path
    _records: Records

    def __len__(self) -> int:
        return len(self._records)

    def _source(self, index: int) -> str:
        return self._records.source(index)

    def _read(self, index: int, source: str) -> Conversation:
        text, answer, name, facts = self._parse(self._records[index], source)
        image = read_image(file_in(self._root, name, source), source)
        turns = message("user", image, text), message("assistant", answer)
        return Conversation("vqa", turns, (), source, facts)

    @abstractmethod
    def _parse(self, record: Any, source: str) -> tuple[str, str, str, dict[str, Any]]:
        """Return question, answer, file of the image below the folder, and facts."""


class VqaQuestions(Questions):
    """VQAv2 and OK-VQA: a file of questions and a file of ten answers to each.

    `facts`: "question_id", "question", "answers" (may be empty) and, with answers, "question_type"
    and "answer_type".

    Args:
        root: folder with the JSON files and the folders of images, such as train2014.
        split: "train2014", "val2014", "test2015" or "test-dev2015".

    Raises:
        ValueError: a file is missing or holds something else.
    """

    def __init__(self, root: str | Path, split: str = "val2014"):
        self._root = check_root(root)
        prefixes = ("v2_OpenEnded_mscoco_", "OpenEnded_mscoco_")
        names = [f"{prefix}{split}_questions.json" for prefix in prefixes]
        self._records = JsonList(find_file(self._root, *names), "questions")
        # Both test splits share the images of test2015.
        self._folder = "test2015" if split.startswith("test") else split
        self._answers: dict[Any, list[dict[str, Any]]] = {}
        if not split.startswith("test"):
            names = [f"{prefix}mscoco_{split}_annotations.json" for prefix in ("v2_", "")]
            annotations = JsonList(find_file(self._root, *names), "annotations")
            self._answers = by_key(annotations, "question_id")

    def _parse(self, record: Any, source: str) -> tuple[str, str, str, dict[str, Any]]:
        question = field_of(record, "question", str, source)
        number = field_of(record, "question_id", int, source)
        image = field_of(record, "image_id", int, source)
        facts: dict[str, Any] = {"question_id": number, "question": question, "answers": []}
        if self._answers:
            if number not in self._answers:
                raise BrokenSampleError(source, f"no answers to question {number}")
            annotation = self._answers[number][-1]
            given = field_of(annotation, "answers", list, source)
            facts["answers"] = [field_of(answer, "answer", str, source) for answer in given]
            for name in ("question_type", "answer_type"):
                facts[name] = field_of(annotation, name, str, source)
        file = f"COCO_{self._folder}_{image:012d}.jpg"
        path = f"{self._folder}/{file}"
        return f"{question}\n{SHORT}", most_common(facts["answers"]), path, facts


class AokvqaQuestions(Questions):
    """A-OKVQA, by free answers or by choice.

    `facts`: "question_id", "question", "answers" (of annotators), "choices", "correct" (the index
    of the right choice, None in the test split) and "difficult_direct_answer" (whether free answers
    do not count).

    Args:
        root: folder with aokvqa_v1p0_SPLIT.json and the folders of COCO's images, such as
            val2017.
        split: "train", "val" or "test".
        choices: multiple choice, which asks for the letter of a choice.

    Raises:
        ValueError: a file is missing or holds something else.
    """

    def __init__(self, root: str | Path, split: str = "val", choices: bool = False):
        self._root, self._split, self._choices = check_root(root), split, choices
        self._records = JsonList(find_file(self._root, f"aokvqa_v1p0_{split}.json"))

    def _parse(self, record: Any, source: str) -> tuple[str, str, str, dict[str, Any]]:
        question = field_of(record, "question", str, source)
        choices = _texts(record, "choices", source)
        if not 1 <= len(choices) <= _MAX_CHOICES:
            expected = f"1 to {_MAX_CHOICES}"
            raise BrokenSampleError(source, f"choices: expected {expected}, got {len(choices)}")
        is_test = self._split == "test"
        answers = [] if is_test else _texts(record, "direct_answers", source)
        difficult = record.get("difficult_direct_answer", False)
        if not isinstance(difficult, bool):
            reason = f"difficult_direct_answer: expected a bool, got {difficult!r:.80}"
            raise BrokenSampleError(source, reason)
        correct = None if is_test else field_of(record, "correct_choice_idx", int, source)
        if correct is not None and not 0 <= correct < len(choices):
            expected = f"0 to {len(choices) - 1}"
            raise BrokenSampleError(
                source, f"correct_choice_idx: expected {expected}, got {correct}"
            )
        facts = {
            "question_id": field_of(record, "question_id", str, source),
            "question": question,
            "answers": answers,
            "choices": choices,
            "correct": correct,
            "difficult_direct_answer": difficult,
        }
        folder = f"{self._split}2017"
        image = field_of(record, "image_id", int, source)
        path = f"{folder}/{image:012d}.jpg"
        if not self._choices:
            return f"{question}\n{SHORT}", most_common(answers), path, facts
        listed = "\n".join(f"{_letter(i)}. {text}" for i, text in enumerate(choices))
        answer = "" if correct is None else _letter(correct)
        return f"{question}\n{listed}\n{_LETTER}", answer, path, facts


class GqaQuestions(Questions):
    """GQA: one answer to each question.

    `facts`: "question_id", "question", "answers" (one, or none in the test splits); of those that
    the files have also "balanced", "types", "group" (the global one), "entailed" (numbers of
    questions), "valid" and "plausible" (answers).

    Args:
        root: folder with SPLIT_questions.json and the folder images, and perhaps with the official
            choices, TIER_choices.json or eval/TIER_choices.json, such as val_choices.json.
        split: name of the split, such as "train_balanced", "val_balanced" or "testdev_balanced".
            The consistency of answers needs "val_all", with all entailed questions.

    Raises:
        ValueError: a file is missing or holds something else.
    """

    def __init__(self, root: str | Path, split: str = "testdev_balanced"):
        self._root = check_root(root)
        self._records = _ById(find_file(self._root, f"{split}_questions.json"))
        name = f"{split.partition('_')[0]}_choices.json"
        paths = [self._root / one for one in (name, f"eval/{name}") if (self._root / one).is_file()]
        self._choices = dict(_ById(paths[0]).items) if paths else None

    def _parse(self, record: Any, source: str) -> tuple[str, str, str, dict[str, Any]]:
        number, fields = record
        question = field_of(fields, "question", str, source)
        image = field_of(fields, "imageId", str, source)
        answers = [field_of(fields, "answer", str, source)] if "answer" in fields else []
        facts = {"question_id": number, "question": question, "answers": answers}
        facts |= kinds_of(fields, source)
        if self._choices is not None:
            if number not in self._choices:
                raise BrokenSampleError(source, f"no choices for question {number}")
            choices = self._choices[number]
            facts |= {name: _texts(choices, name, source) for name in ("valid", "plausible")}
        path = f"images/{image}.jpg"
        return f"{question}\n{SHORT}", most_common(answers), path, facts


def kinds_of(fields: Any, source: str) -> dict[str, Any]:
    """Return the facts of a question of GQA that its official metrics need."""
    found: dict[str, Any] = {}
    if "isBalanced" in fields:
        found["balanced"] = bool(fields["isBalanced"])
    if "types" in fields:
        types = field_of(fields, "types", dict, source)
        names = ("structural", "semantic", "detailed")
        found["types"] = {name: field_of(types, name, str, source) for name in names}
    if "groups" in fields:
        group = field_of(fields, "groups", dict, source).get("global")
        if group is not None and not isinstance(group, str):
            raise BrokenSampleError(source, f"groups: expected a text or null, got {group!r:.80}")
        found["group"] = group
    if "entailed" in fields:
        found["entailed"] = _texts(fields, "entailed", source)
    return found


class MmVet(Questions):
    """MM-Vet: open questions; a judge compares their answers with the right ones.

    `facts`: "question_id", "question", "answers" (one), "capabilities".

    Args:
        root: folder with mm-vet.json and the folder images.

    Raises:
        ValueError: a file is missing or holds something else.
    """

    def __init__(self, root: str | Path):
        self._root = check_root(root)
        self._records = _ById(find_file(self._root, "mm-vet.json"))

    def _parse(self, record: Any, source: str) -> tuple[str, str, str, dict[str, Any]]:
        number, fields = record
        question = field_of(fields, "question", str, source)
        answer = field_of(fields, "answer", str, source)
        facts = {
            "question_id": number,
            "question": question,
            "answers": [answer],
            "capabilities": _texts(fields, "capability", source),
        }
        name = field_of(fields, "imagename", str, source)
        return question, answer, f"images/{name}", facts


class _ById:
    """Entries of a JSON object, in its order."""

    def __init__(self, path: Path):
        whole = read_json(path)
        if not isinstance(whole, dict):
            raise ValueError(f"{path}: expected an object, got {type(whole).__name__}")
        self._path, self.items = path, list(whole.items())

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[str, Any]:
        return self.items[index]

    def source(self, index: int) -> str:
        return f"{self._path}: {self.items[index][0]}"


def _texts(record: Any, name: str, source: str) -> list[str]:
    """Return a list of texts in a record."""
    found = field_of(record, name, list, source)
    if not all(isinstance(one, str) for one in found):
        raise BrokenSampleError(source, f"{name}: expected texts, got {found!r:.80}")
    return found


def most_common(answers: list[str]) -> str:
    """Return the most frequent answer, ties the first; empty without answers."""
    return Counter(answers).most_common(1)[0][0] if answers else ""


def _letter(number: int) -> str:
    return chr(ord("A") + number)
