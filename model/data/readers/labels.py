"""Labelled images: ImageNet-1K and OpenImages in their published files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from setokim.data.file_dataset import FileDataset
from setokim.data.image_processing import find_images
from setokim.data.readers.files import (
    check_root,
    decode_image,
    field_of,
    file_in,
    find_file,
    read_image,
)
from setokim.data.readers.imagenet_classes import is_class, read_classes, read_names
from setokim.data.records import CsvRows, ParquetRows
from setokim.data.samples import BrokenSampleError, Sample

# Prefixes of OpenImages' file names, the oldest first.
_VERSIONS = ("", "oidv6-", "oidv7-")
_COLUMNS = ("ImageID", "LabelName", "Confidence")


class ImageNetFolder(FileDataset):
    """ImageNet-1K as folders of WordNet ids; the caption is the first name of the class.

    The validation images lie in one folder, and their classes in a file (see
    `imagenet_classes.read_classes`).

    Args:
        root: folder of a split: n01440764/*.JPEG and so on, or *.JPEG.
        names: names of the classes by WordNet id, or a file of them
            (`imagenet_classes.read_names`); None leaves the ids as captions.
        classes: file of the classes of images without class folders; None looks for it in `root`
            and the folder above.

    Raises:
        ImportError: the file of classes requires scipy, which is not installed.
        ValueError: the folder does not exist, has no image, the classes are unknown, or the
            file of names does not fit.
    """

    def __init__(
        self,
        root: str | Path,
        names: Mapping[str, str] | str | Path | None = None,
        classes: str | Path | None = None,
    ):
        folder = check_root(root)
        self._names = read_names(names) if isinstance(names, str | Path) else names
        # Found by suffix, in upper or lower case.
        self._files = find_images([folder], recursive=True)
        if not self._files:
            raise ValueError(f"root: expected folders of images in {root}, got none")
        # `root` may also be the folder of a single class.
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
            raise BrokenSampleError(source, "the file of classes has no class for it")
        if self._names is not None and label not in self._names:
            raise BrokenSampleError(source, f"the class {label!r} has no name")
        caption = label if self._names is None else self._names[label]
        return Sample(read_image(file, source), caption, (caption,), None, source)


class ImageNetParquet(FileDataset):
    """ImageNet-1K as on the hub: parquet files with the columns image and label.

    Args:
        root: folder with SPLIT-*.parquet, or data/SPLIT-*.parquet.
        split: "train", "validation" or "test".
        names: names of the classes in the order of their numbers; None leaves the numbers as
            captions.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the folder or its files do not exist.
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
        image = decode_image(record.get("image"), source, "image")
        return Sample(image, caption, (caption,), None, source)


class OpenImages(FileDataset):
    """OpenImages: images with their human-verified labels.

    The concepts of an image are the names of its labels, and the caption lists them.

    Args:
        root: folder with SPLIT-annotations-human-imagelabels.csv, class-descriptions.csv and the
            folder SPLIT of images. File names of versions 7 and 6 begin with "oidv7-" and
            "oidv6-", and those of version 7 have "val".
        split: "train", "validation" or "test".

    Raises:
        ValueError: a file is missing, or no image has a label.
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
        # Some versions have a header, which becomes one unused class.
        names = self._rows(CsvRows(find_file(folder, *files), names=("id", "name")))
        self._names = {row["id"]: row["name"] for row in names}
        self._labels: dict[str, list[str]] = {}
        for row in self._rows(rows):
            # 0 marks labels that annotators have rejected.
            if row["Confidence"] in ("1", "1.0"):
                self._labels.setdefault(row["ImageID"], []).append(row["LabelName"])
        self._ids = list(self._labels)
        if not self._ids and not self._broken:
            raise ValueError(f"root: expected labels of confidence 1 in {labels}, got none")

    def _rows(self, rows: CsvRows) -> list[dict[str, str]]:
        """Read all rows; those that cannot be read count as broken samples."""
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
        image = read_image(file_in(self._root, f"{self._split}/{name}.jpg", source), source)
        return Sample(image, ", ".join(concepts), concepts, None, source)
