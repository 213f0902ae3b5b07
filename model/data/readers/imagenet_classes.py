"""Classes of ImageNet's validation images, which lie in one folder without class folders."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

from setok_kernels.extras import from_extra
from setokim.data.records import CsvRows, Lines
from setokim.data.samples import BrokenSampleError

_SOLUTION = "LOC_val_solution.csv"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_KIT = "ILSVRC2012_devkit_t12/data"
_CLASS = re.compile(r"n\d{8}")


def is_class(name: str) -> bool:
    """Return whether a name is a WordNet id."""
    return _CLASS.fullmatch(name) is not None


def read_classes(folder: Path, path: str | Path | None = None) -> dict[str, str]:
    """Read the WordNet id of each image, by its file name without suffix.

    Args:
        folder: folder of the images. It or the folder above holds LOC_val_solution.csv (Kaggle) or,
            from the development kit, ILSVRC2012_validation_ground_truth.txt beside meta.mat; the
            kit's files may also lie in ILSVRC2012_devkit_t12/data of either.
        path: path of one of these files, if it lies elsewhere.

    Raises:
        ImportError: meta.mat must be read, and scipy is not installed.
        ValueError: none of the files exists, or it holds something else.
    """
    path = _found(folder) if path is None else Path(path)
    if not path.is_file():
        raise ValueError(f"classes: expected a file, got {str(path)!r}")
    classes = _solution(path) if path.suffix == ".csv" else _truth(path)
    if not classes:
        raise ValueError(f"{path}: expected classes of images, got none")
    return classes


def read_names(path: str | Path) -> dict[str, str]:
    """Read the first name of each class, by WordNet id.

    Args:
        path: LOC_synset_mapping.txt (Kaggle), lines such as "n01440764 tench, Tinca tinca".

    Raises:
        ValueError: the file is not there, or a line is none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"names: expected a file, got {str(path)!r}")
    lines, found = Lines(path), {}
    for index in range(len(lines)):
        name, _, said = lines[index].partition(" ")
        first = said.partition(",")[0].strip()
        if not is_class(name) or not first:
            got = f"{lines[index]!r:.80}"
            raise ValueError(f"{lines.source(index)}: expected a WordNet id and names, got {got}")
        found[name] = first
    if not found:
        raise ValueError(f"{path}: expected names of classes, got none")
    return found


def _found(folder: Path) -> Path:
    names = [_SOLUTION, _TRUTH, f"{_KIT}/{_TRUTH}"]
    for base, name in product((folder, folder.absolute().parent), names):
        if (base / name).is_file():
            return base / name
    raise ValueError(
        f"root: expected class folders, or {_SOLUTION} or {_TRUTH} in {folder} or above, got none"
    )


def _solution(path: Path) -> dict[str, str]:
    """Read rows of an image and its boxes, each of which begins with a class; skip damaged ones."""
    rows, found = CsvRows(path, columns=("ImageId", "PredictionString")), {}
    for index in range(len(rows)):
        try:
            row = rows[index]
        except BrokenSampleError:
            continue
        name = row["PredictionString"].split(" ", 1)[0]
        if is_class(name):
            found[row["ImageId"]] = name
    return found


def _truth(path: Path) -> dict[str, str]:
    """Read one class number for each image; meta.mat maps the numbers to WordNet ids."""
    ids, lines = _ids(path.with_name(_META)), Lines(path)
    found = {}
    for index in range(len(lines)):
        text = lines[index].strip()
        if text not in ids:
            raise ValueError(f"{lines.source(index)}: expected the number of a class, got {text!r}")
        found[f"ILSVRC2012_val_{index + 1:08d}"] = ids[text]
    return found


def _ids(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise ValueError(f"classes: expected {_META} beside {_TRUTH}, got none in {path.parent}")
    with from_extra("eval"):
        from scipy.io import loadmat

    try:
        synsets = loadmat(str(path), squeeze_me=True)["synsets"]
        return {
            str(int(one["ILSVRC2012_ID"])): str(one["WNID"])
            for one in synsets
            if is_class(str(one["WNID"]))
        }
    except Exception as error:
        # scipy raises nearly anything on other files.
        raise ValueError(f"{path}: expected synsets of ImageNet, got {error!r}") from error
