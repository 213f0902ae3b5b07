"""Yes-or-no questions: POPE and MME in their published files."""

from __future__ import annotations

import codecs
from pathlib import Path

from setokim.data.conversations import Conversation, message
from setokim.data.file_dataset import FileDataset
from setokim.data.image_processing import IMAGE_SUFFIXES
from setokim.data.readers.files import check_root, field_of, file_in, find_file, read_image
from setokim.data.records import JsonLines, JsonList
from setokim.data.samples import BrokenSampleError

# Path of the questions and folder of the images, by data set.
_FILES = {
    "coco": ("coco_pope_{}.json", "val2014"),
    "aokvqa": ("aokvqa_pope_seem_{}.json", "val2014"),
    "gqa": ("gqa_pope_seem_{}.json", "images"),
}
_PROMPT = "Answer the question using a single word or phrase."


class Pope(FileDataset):
    """POPE on COCO, A-OKVQA and GQA: is there such an object in the image?

    The objects of A-OKVQA and GQA are those that SEEM found in the images.

    `facts`: "question_id", "image" (the file's name), "category" (the split), "label" ("yes" or
    "no").

    Args:
        root: folder with coco_pope_SPLIT.json, aokvqa_pope_seem_SPLIT.json or
            gqa_pope_seem_SPLIT.json, also in a folder of the data set's name such as coco; and
            the folder of images: val2014 of COCO, also for A-OKVQA, or images of GQA.
        split: "random", "popular" or "adversarial".
        data: data set of the images, "coco", "aokvqa" or "gqa".

    Raises:
        ValueError: the folder or file does not exist or holds something else.
    """

    def __init__(self, root: str | Path, split: str = "random", data: str = "coco"):
        if data not in _FILES:
            raise ValueError(f"data: expected one of {', '.join(_FILES)}, got {data!r}")
        self._root, self._split = check_root(root), split
        pattern, self._folder = _FILES[data]
        name = pattern.format(split)
        path = find_file(self._root, name, f"{data}/{name}")
        # Those of COCO hold lines of JSON, despite their names, and the others usually a list.
        self._records = JsonList(path) if _is_list(path) else JsonLines(path)

    def __len__(self) -> int:
        return len(self._records)

    def _source(self, index: int) -> str:
        return self._records.source(index)

    def _read(self, index: int, source: str) -> Conversation:
        record = self._records[index]
        label = field_of(record, "label", str, source)
        if label not in ("yes", "no"):
            raise BrokenSampleError(source, f"label: expected yes or no, got {label!r}")
        name = field_of(record, "image", str, source)
        image = read_image(file_in(self._root, f"{self._folder}/{name}", source), source)
        text = field_of(record, "text", str, source)
        facts = {
            "question_id": field_of(record, "question_id", int, source),
            "image": name,
            "category": self._split,
            "label": label,
        }
        turns = message("user", image, f"{text}\n{_PROMPT}"), message("assistant", label)
        return Conversation("vqa", turns, (), source, facts)


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


class Mme(FileDataset):
    """MME: two questions about each image, in fourteen subtasks.

    `facts`: "task", "image" (the file's name without its suffix), "label".

    Args:
        root: folder with a folder for each subtask. Each of these has NAME.txt of two lines
            (question, tab and answer) beside NAME.jpg or .png, or the texts in questions_answers_YN
            and the images in images.

    Raises:
        ValueError: the folder does not exist or has no question.
    """

    def __init__(self, root: str | Path):
        self._root = check_root(root)
        # File and line of each sample.
        self._samples: list[tuple[Path, int]] = []
        for task in sorted(path for path in self._root.iterdir() if path.is_dir()):
            inner = task / "questions_answers_YN"
            for path in sorted((inner if inner.is_dir() else task).glob("*.txt")):
                self._samples += [(path, 0), (path, 1)]
        if not self._samples:
            raise ValueError(f"root: expected folders of subtasks in {root}, got none")

    def __len__(self) -> int:
        return len(self._samples)

    def _source(self, index: int) -> str:
        path, number = self._samples[index]
        return f"{path}:{number + 1}"

    def _read(self, index: int, source: str) -> Conversation:
        path, number = self._samples[index]
        try:
            lines = path.read_bytes().decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BrokenSampleError(source, f"cannot read it: {error}") from error
        question, tab, label = lines[number].rpartition("\t") if number < len(lines) else ("",) * 3
        if not tab or label.strip().lower() not in ("yes", "no"):
            raise BrokenSampleError(source, "expected question, tab, and Yes or No")
        is_nested = path.parent.name == "questions_answers_YN"
        task = path.parents[1] if is_nested else path.parent
        folder = task / "images" if is_nested else task
        files = (folder / f"{path.stem}{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
        file = next((one for one in files if one.is_file()), folder / f"{path.stem}.jpg")
        image = read_image(file, source)
        facts = {"task": task.name, "image": path.stem, "label": label.strip()}
        turns = message("user", image, question.strip()), message("assistant", label.strip())
        return Conversation("vqa", turns, (), source, facts)
