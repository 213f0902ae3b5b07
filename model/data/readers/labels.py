"""Pictures with labels: ImageNet-1K and OpenImages in their published files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from setokim.data.file_dataset import FileDataset
from setokim.data.image_processing import find_images
from setokim.data.readers.files import (
    check_root,
    field_of,
    file_in,
    find_file,
    picture_in,
    picture_of,
)
from setokim.data.readers.imagenet_classes import is_class, read_classes, read_names
from setokim.data.records import CsvRows, ParquetRows
from setokim.data.samples import BrokenSampleError, Sample

# What names of OpenImages' files begin with, the oldest first.
_VERSIONS = ("", "oidv6-", "oidv7-")
_COLUMNS = ("ImageID", "LabelName", "Confidence")


class ImageNetFolder(FileDataset):
    """ImageNet-1K as folders of WordNet ids; the caption is the first name of the class.

    The validation pictures come in one folder, and their classes in a file (see
    `imagenet_classes.read_classes`).

    Args:
        root: folder of a split: n01440764/*.JPEG and so on, or *.JPEG.
        names: of the classes by WordNet id, or a file of them (`imagenet_classes.read_names`);
            None leaves the ids as captions.
        classes: file of the classes of pictures without class folders; None looks for it in `root`
            and the folder above.

    Raises:
        ImportError: the file of classes wants scipy, which is not installed.
        ValueError: there is no such folder, no picture in it, nothing tells their classes, or the
            file of names holds something else.
    """

    def __init__(
        self,
        root: str | Path,
        names: Mapping[str, str] | str | Path | None = None,
        classes: str | Path | None = None,
    ):
        folder = check_root(root)
        self._names = read_names(names) if isinstance(names, str | Path) else names
        # By suffix, whatever its case.
        self._files = find_images([folder], recursive=True)
        if not self._files:
            raise ValueError(f"root: expected folders of pictures in {root}, got none")
        # Of one class alone the folder may be given too.
        is_flat = any(file.parent == folder for file in self._files) and not is_class(folder.name)
        self._flat = folder if is_flat else None
        self._classes = read_classes(folder, classes) if is_flat else {}

    def __len__(self) -> int:
        return len(self._files)

    def _source(self, index: int) -> str:
        return str(self._files[index])

    def _read(self, index: int, source: str) -> Sample:
        file = self._files[index]
        label = self._classes.get(file.stem) if file.parent == self._flat else file.parent.name
        if label is None:
            raise BrokenSampleError(source, "the file of classes has none for it")
        if self._names is not None and label not in self._names:
            raise BrokenSampleError(source, f"the class {label!r} has no name")
        caption = label if self._names is None else self._names[label]
        return Sample(picture_of(file, source), caption, (caption,), None, source)


class ImageNetParquet(FileDataset):
    """ImageNet-1K as the hub has it: columns image and label.

    Args:
        root: folder with SPLIT-*.parquet, or data/SPLIT-*.parquet.
        split: "train", "validation" or "test".
        names: of the classes in the order of their numbers; None leaves the numbers as captions.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: there is no such file.
    """

    def __init__(self, root: str | Path, split: str, names: tuple[str, ...] | None = None):
        folder, pattern = check_root(root), f"{split}-*.parquet"
        paths = sorted(folder.glob(pattern)) or sorted(folder.glob(f"data/{pattern}"))
        if not paths:
            raise ValueError(f"root: expected {pattern} in {root} or its folder data, got none")
        self._records, self._names = ParquetRows(paths), names

    def __len__(self) -> int:
        return len(self._records)

    def _source(self, index: int) -> str:
        return self._records.source(index)

    def _read(self, index: int, source: str) -> Sample:
        record = self._records[index]
        label = field_of(record, "label", int, source)
        if self._names is not None and not 0 <= label < len(self._names):
            reason = f"label: expected 0 to {len(self._names) - 1}, got {label}"
            raise BrokenSampleError(source, reason)
        caption = str(label) if self._names is None else self._names[label]
        picture = picture_in(record.get("image"), source, "image")
        return Sample(picture, caption, (caption,), None, source)


class OpenImages(FileDataset):
    """OpenImages: pictures with the labels that people have confirmed.

    The caption lists the names of all labels of a picture, which are its concepts.

    Args:
        root: folder with SPLIT-annotations-human-imagelabels.csv, class-descriptions.csv and the
            folder SPLIT of pictures. Names of version 7 and 6 begin with "oidv7-" and "oidv6-",
            and those of version 7 have "val".
        split: "train", "validation" or "test".

    Raises:
        ValueError: a file is not there, or no picture has a label.
    """

    def __init__(self, root: str | Path, split: str = "train"):
        folder = check_root(root)
        self._root, self._split = folder, split
        labels = f"{split}-annotations-human-imagelabels.csv"
        short = labels.replace("validation", "val", 1)
        files = (f"{version}{name}" for version in _VERSIONS for name in (labels, short))
        rows = CsvRows(find_file(folder, *dict.fromkeys(files)), columns=_COLUMNS)
        self._broken: list[tuple[str, str]] = []
        files = (f"{version}class-descriptions.csv" for version in reversed(_VERSIONS))
        # Some versions have a line of names, which is no class and does no harm.
        names = self._rows(CsvRows(find_file(folder, *files), names=("id", "name")))
        self._names = {row["id"]: row["name"] for row in names}
        self._labels: dict[str, list[str]] = {}
        for row in self._rows(rows):
            # 0 says that people have looked and found none.
            if row["Confidence"] in ("1", "1.0"):
                self._labels.setdefault(row["ImageID"], []).append(row["LabelName"])
        self._ids = list(self._labels)
        if not self._ids and not self._broken:
            raise ValueError(f"root: expected labels of confidence 1 in {labels}, got none")

    def _rows(self, rows: CsvRows) -> list[dict[str, str]]:
        """All that can be read; the others count as samples that cannot."""
        found = []
        for index in range(len(rows)):
            try:
                found.append(rows[index])
            except BrokenSampleError as error:
                self._broken.append((error.source, error.reason))
        return found

    def __len__(self) -> int:
        return len(self._ids) + len(self._broken)

    def _source(self, index: int) -> str:
        if index >= len(self._ids):
            return self._broken[index - len(self._ids)][0]
        return str(self._root / self._split / f"{self._ids[index]}.jpg")

    def _read(self, index: int, source: str) -> Sample:
        if index >= len(self._ids):
            raise BrokenSampleError(*self._broken[index - len(self._ids)])
        name = self._ids[index]
        labels = self._labels[name]
        unknown = [label for label in labels if not self._names.get(label)]
        if unknown:
            raise BrokenSampleError(source, f"the label {unknown[0]!r} has no name")
        concepts = tuple(dict.fromkeys(self._names[label] for label in labels))
        picture = picture_of(file_in(self._root, f"{self._split}/{name}.jpg", source), source)
        return Sample(picture, ", ".join(concepts), concepts, None, source)
