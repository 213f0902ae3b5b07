"""Questions and captions in the parquet files that lmms-lab publishes on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from setokim.data.conversations import Conversation, message
from setokim.data.file_dataset import FileDataset
from setokim.data.readers.captions import captioning
from setokim.data.readers.files import check_root, decode_image, field_of
from setokim.data.readers.questions import SHORT, kinds_of, most_common
from setokim.data.records import ParquetRows
from setokim.data.samples import BrokenSampleError, Dataset

Record = dict[str, Any]
Parsed = tuple[str, str, str, dict[str, Any]]


def _vqa(record: Record, source: str) -> Parsed:
    question, answers = field_of(record, "question", str, source), record.get("answers") or []
    if not isinstance(answers, list):
        raise BrokenSampleError(source, f"answers: expected a list, got {answers!r:.80}")
    # VQAv2 has an object for each annotator, OK-VQA the texts.
    texts = [one.get("answer") if isinstance(one, dict) else one for one in answers]
    if not all(isinstance(text, str) for text in texts):
        raise BrokenSampleError(source, f"answers: expected texts, got {texts!r:.80}")
    facts = {"question_id": _number(record, source), "question": question, "answers": texts}
    if texts:
        kinds = ("question_type", "answer_type")
        facts |= {name: field_of(record, name, str, source) for name in kinds}
    return "vqa", f"{question}\n{SHORT}", most_common(texts), facts


def _gqa(record: Record, source: str) -> Parsed:
    question = field_of(record, "question", str, source)
    answer = record.get("answer")
    answers = [] if answer is None else [field_of(record, "answer", str, source)]
    number = field_of(record, "id", str, source)
    facts = {"question_id": number, "question": question, "answers": answers}
    fields = {name: value for name, value in record.items() if value is not None}
    if isinstance(fields.get("entailed"), str):
        # A list of Python in a text.
        fields["entailed"] = re.findall(r"\w+", fields["entailed"])
    return "vqa", f"{question}\n{SHORT}", most_common(answers), facts | kinds_of(fields, source)


def _pope(record: Record, source: str) -> Parsed:
    label = _yes_or_no(record, source).lower()
    question = field_of(record, "question", str, source)
    facts = {"question_id": _number(record, source), "label": label}
    return "vqa", f"{question}\n{SHORT}", label, facts


def _mme(record: Record, source: str) -> Parsed:
    label = _yes_or_no(record, source)
    name = PurePosixPath(field_of(record, "question_id", str, source)).stem
    facts = {"task": field_of(record, "category", str, source), "image": name, "label": label}
    return "vqa", field_of(record, "question", str, source).strip(), label, facts


def _caption(record: Record, source: str) -> Parsed:
    captions = field_of(record, "answer", list, source)
    if not all(isinstance(text, str) for text in captions):
        raise BrokenSampleError(source, f"answer: expected texts, got {captions!r:.80}")
    name = PurePosixPath(field_of(record, "question_id", str, source)).stem
    digits = name.rpartition("_")[2]
    if not digits.isdecimal():
        raise BrokenSampleError(source, f"question_id: expected COCO's file, got {name!r:.80}")
    facts = {"image_id": int(digits), "answers": [text.strip() for text in captions]}
    return "caption", "", "", facts


@dataclass(frozen=True)
class _Layout:
    """Files and fields of one data set.

    Attributes:
        parse: function from a record and its source to task, question, answer and facts.
        split: split by default.
        files: pattern of the files by split; `*` for any other one, with its name for {}.
        images: pattern of the files of images, which the field imageId refers to; None for images
            in the records.
        by_category: whether a split is the rows of that category.
    """

    parse: Callable[[Record, str], Parsed]
    split: str | None
    files: dict[str, str]
    images: str | None = None
    by_category: bool = False


_LAYOUTS = {
    "vqav2": _Layout(
        _vqa,
        "val2014",
        {
            "val2014": "data/validation-*.parquet",
            "train2014": "data/train-*.parquet",
            "test-dev2015": "data/testdev-*.parquet",
            "test2015": "data/test-*.parquet",
        },
    ),
    "okvqa": _Layout(_vqa, "val2014", {"*": "data/{}-*.parquet"}),
    "gqa": _Layout(
        _gqa, "testdev_balanced", {"*": "{}_instructions/*.parquet"}, "{}_images/*.parquet"
    ),
    "pope": _Layout(_pope, "random", {"*": "data/test-*.parquet"}, by_category=True),
    "mme": _Layout(_mme, None, {"*": "data/test-*.parquet"}),
    "coco-captions": _Layout(
        _caption, "val2017", {"val2014": "data/val-*.parquet", "val2017": "data/val-*.parquet"}
    ),
}


class HubQuestions(FileDataset):
    """One record a sample, as from the authors' own files of the data set, with the same `facts`.

    Args:
        root: folder of the repository on the hub.
        name: "vqav2", "okvqa", "gqa", "pope", "mme" or "coco-captions".
        split: split by the name that the authors' files have; None for the usual one.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the split is unknown or empty, or a file is no parquet file.
    """

    def __init__(self, root: str | Path, name: str, split: str | None = None):
        folder, layout = check_root(root), _LAYOUTS[name]
        self._name, self._parse = name, layout.parse
        self._split = split = layout.split if split is None else split
        pattern = layout.files.get(str(split), layout.files.get("*"))
        if pattern is None:
            raise ValueError(f"split: expected one of {', '.join(layout.files)}, got {split!r}")
        where = ("category", str(split)) if layout.by_category else None
        self._records = _rows(folder, pattern.format(split), where)
        if not len(self._records):
            raise ValueError(f"split: expected one in {root}, got {split!r}")
        self._images = self._rows_of_images = None
        if layout.images is not None:
            self._images = _rows(folder, layout.images.format(split))
            ids = self._images.column("id")
            self._rows_of_images = {number: row for row, number in enumerate(ids)}

    def __len__(self) -> int:
        return len(self._records)

    def _source(self, index: int) -> str:
        return self._records.source(index)

    def _read(self, index: int, source: str) -> Conversation:
        record = self._records[index]
        task, question, answer, facts = self._parse(record, source)
        holder = record
        if self._images is not None:
            number = field_of(record, "imageId", str, source)
            if number not in self._rows_of_images:
                raise BrokenSampleError(source, f"imageId: expected an image, got {number!r}")
            holder = self._images[self._rows_of_images[number]]
        image = decode_image(holder.get("image"), source, "image")
        if task == "caption":
            is_2014 = str(record["question_id"]).startswith("COCO_")
            if is_2014 != (self._split == "val2014"):
                reason = f"expected {self._split}, got {record['question_id']!r:.80}"
                raise BrokenSampleError(source, f"question_id: {reason}")
            return captioning(image, facts.pop("answers"), source, facts)
        turns = message("user", image, question), message("assistant", answer)
        return Conversation(task, turns, (), source, facts)


def or_hub(published: Callable[..., Dataset], name: str) -> Callable[..., Dataset]:
    """Return a reader of the authors' files, or of the hub's where these are in the folder.

    Args:
        published: reader of the authors' files.
        name: name of the data set, one of `HubQuestions`.
    """

    def open_either(root: str | Path, *arguments: Any, **options: Any) -> Dataset:
        patterns = ("data/*.parquet", "*_instructions/*.parquet")
        if any(next(Path(root).glob(one), None) is not None for one in patterns):
            return HubQuestions(root, name, *arguments, **options)
        return published(root, *arguments, **options)

    return open_either


def _rows(folder: Path, pattern: str, where: tuple[str, str] | None = None) -> ParquetRows:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ValueError(f"root: expected {pattern} in {folder}, got none")
    return ParquetRows(paths, where)


def _number(record: Record, source: str) -> int:
    """Return question_id, a number or a text of one."""
    value = field_of(record, "question_id", (int, str), source)
    if isinstance(value, str) and not value.isdecimal():
        raise BrokenSampleError(source, f"question_id: expected a number, got {value!r:.80}")
    return int(value)


def _yes_or_no(record: Record, source: str) -> str:
    answer = field_of(record, "answer", str, source).strip()
    if answer.lower() not in ("yes", "no"):
        raise BrokenSampleError(source, f"answer: expected yes or no, got {answer!r:.80}")
    return answer
