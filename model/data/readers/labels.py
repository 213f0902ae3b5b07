"""Pictures with labels: ImageNet-1K and OpenImages in their published files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from setokim.data.readers.files import check_root, field_of, find_file, picture_in, picture_of
from setokim.data.records import CsvRows, ParquetRows
from setokim.data.samples import BrokenSampleError, Sample, check_index
from setokim.images import find_images


class ImageNetFolder:
    """ImageNet-1K as folders of WordNet ids; the caption is the first name of the class.

    Args:
        root: folder of a split: n01440764/*.JPEG and so on.
        names: of the classes by WordNet id; None leaves the ids as captions.

    Raises:
        ValueError: there is no such folder, or no picture in it.
    """

    def __init__(self, root: str | Path, names: Mapping[str, str] | None = None):
        folder = check_root(root)
        self._names = names
        # By suffix, whatever its case.
        self._files = find_images([folder], recursive=True)
        if not self._files:
            raise ValueError(f"root: expected folders of pictures in {root}, got none")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self))
        file = self._files[index]
        label = file.parent.name
        if self._names is not None and label not in self._names:
            raise BrokenSampleError(str(file), f"the class {label!r} has no name")
        caption = label if self._names is None else self._names[label]
        return Sample(picture_of(file, str(file)), caption, (caption,), None, str(file))


class ImageNetParquet:
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

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self))
        source, record = self._records.source(index), self._records[index]
        label = field_of(record, "label", int, source)
        if self._names is not None and not 0 <= label < len(self._names):
            reason = f"label: expected 0 to {len(self._names) - 1}, got {label}"
            raise BrokenSampleError(source, reason)
        caption = str(label) if self._names is None else self._names[label]
        picture = picture_in(record.get("image"), source, "image")
        return Sample(picture, caption, (caption,), None, source)


class OpenImages:
    """OpenImages: pictures with the labels that people have confirmed.

    The caption lists the names of all labels of a picture, which are its concepts.

    Args:
        root: folder with SPLIT-annotations-human-imagelabels.csv (or
            oidv6-SPLIT-annotations-human-imagelabels.csv), oidv7-class-descriptions.csv (or
            class-descriptions.csv) and the folder SPLIT of pictures.
        split: "train", "validation" or "test".

    Raises:
        ValueError: a file is not there, or no picture has a label.
    """

    def __init__(self, root: str | Path, split: str = "train"):
        folder = check_root(root)
        self._folder = folder / split
        labels = f"{split}-annotations-human-imagelabels.csv"
        rows = CsvRows(find_file(folder, labels, f"oidv6-{labels}"))
        self._broken: list[tuple[str, str]] = []
        names = self._rows(
            CsvRows(find_file(folder, "oidv7-class-descriptions.csv", "class-descriptions.csv"))
        )
        self._names = {row.get("LabelName"): row.get("DisplayName") for row in names}
        self._labels: dict[str, list[str]] = {}
        for row in self._rows(rows):
            # 0 says that people have looked and found none.
            if row.get("Confidence") in ("1", "1.0"):
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

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self))
        if index >= len(self._ids):
            raise BrokenSampleError(*self._broken[index - len(self._ids)])
        name = self._ids[index]
        file = self._folder / f"{name}.jpg"
        labels = self._labels[name]
        unknown = [label for label in labels if not self._names.get(label)]
        if unknown:
            raise BrokenSampleError(str(file), f"the label {unknown[0]!r} has no name")
        concepts = tuple(dict.fromkeys(self._names[label] for label in labels))
        return Sample(picture_of(file, str(file)), ", ".join(concepts), concepts, None, str(file))
