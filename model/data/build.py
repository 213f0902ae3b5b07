"""Data sets by the names that settings use, and the collation of guarded samples."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from setok_kernels.config import check_count
from setokim.data.image_folder import ImageFolder
from setokim.data.mixture import Mixture
from setokim.data.readers import READERS
from setokim.data.readers.captions import Pairs
from setokim.data.samples import Dataset, Guarded, Reading, Sample, check_index
from setokim.data.shards import Shards
from setokim.utils.registry import Registry

# Data sets that are generated, called with `seed`, `size` and the options.
GENERATED: Registry[Callable[..., Dataset]] = Registry("kind")
# Data sets that are read, called with `path` and the options.
READ: Registry[Callable[..., Dataset]] = Registry("kind")
_MIXTURE = "mixture"
# Modules that register these kinds when they are imported: they build on this module.
_LAZY = {
    "shapes-world": "setokim.shapes_world.dataset",
    "shapes-tasks": "setokim.shapes_world.tasks",
    "tokens": "setokim.data.tokens.dataset",
}

for _name, _reader in {"folder": ImageFolder, "shards": Shards, **READERS}.items():
    READ.register(_name)(_reader)


class First:
    """The first samples of a data set.

    Args:
        dataset: complete data set.
        samples: number of samples to keep; all if the data set has fewer.

    Raises:
        TypeError: `samples` is no integer.
        ValueError: `samples` is less than 1.
    """

    def __init__(self, dataset: Dataset, samples: int):
        check_count("samples", samples)
        self._dataset = dataset
        self._length = min(samples, len(dataset))

    @property
    def datasets(self) -> tuple[Dataset]:
        """Data set inside, for `contents_of`."""
        return (self._dataset,)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        check_index(index, self._length)
        return self._dataset[index]


def build_dataset(
    kind: str,
    path: str | None = None,
    size: int = 64,
    seed: int = 0,
    samples: int | None = None,
    pairs: str | None = None,
    **options: Any,
) -> Dataset:
    """Build a data set by its name.

    Args:
        kind: "shapes-world", "shapes-tasks", "mixture", "folder", "shards", "tokens", or a name
            of `readers.READERS`.
        path: path of the folder, or name of the shards as in `archives.expand`.
        size: side of the images of shapes-world and shapes-tasks, in pixels.
        seed: random seed of shapes-world, shapes-tasks and mixture.
        samples: number of samples to keep, in order; None for all.
        pairs: task that makes conversations of captioned images, as in `Pairs`; None for none.
        **options: further arguments of the data set's class. A mixture takes `parts`: for each
            name a `weight` and the arguments of this function, with the rest under `options`.

    Raises:
        ValueError: the kind is unknown, or `path` does not fit it.
        TypeError: an option is unknown.
    """
    if kind in _LAZY:
        importlib.import_module(_LAZY[kind])
    if kind not in (*GENERATED, _MIXTURE, *READ):
        known = dict.fromkeys((*_LAZY, *GENERATED, _MIXTURE, *READ))
        raise ValueError(f"kind: expected one of {', '.join(known)}, got {kind!r}")
    if (path is None) != (kind not in READ):
        expected = "a path" if kind in READ else "None"
        raise ValueError(f"path: expected {expected} for kind={kind!r}, got {path!r}")
    if kind == _MIXTURE:
        dataset = _mix(seed, size, **options)
    elif kind in GENERATED:
        dataset = GENERATED[kind](seed=seed, size=size, **options)
    else:
        dataset = READ[kind](path, **options)
    if pairs is not None:
        dataset = Pairs(dataset, pairs)
    return dataset if samples is None else First(dataset, samples)


def _mix(seed: int, size: int, parts: Mapping[str, Mapping[str, Any]]) -> Mixture:
    datasets, weights = {}, {}
    for name, given in parts.items():
        fields = {"size": size, "seed": seed} | dict(given)
        weights[name] = fields.pop("weight", None)
        if "kind" not in fields or weights[name] is None:
            raise ValueError(f"parts[{name!r}]: expected kind and weight, got {dict(given)!r}")
        try:
            datasets[name] = build_dataset(**fields.pop("options", {}), **fields)
        except (OSError, TypeError, ValueError) as error:
            # Which of many data sets is missing.
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"parts[{name!r}]: {error}") from error
    return Mixture(datasets, weights, seed)


class Counted:
    """A guarded data set whose samples are read and counted in this process.

    Args:
        guarded: guarded data set to read.
    """

    def __init__(self, guarded: Guarded):
        self._guarded = guarded

    @property
    def datasets(self) -> tuple[Guarded]:
        """Data set inside, for `contents_of`."""
        return (self._guarded,)

    def __len__(self) -> int:
        return len(self._guarded)

    def __getitem__(self, index: int) -> Sample:
        sample, reading = self._guarded[index]
        self._guarded.count(reading)
        return sample


class GuardedCollator:
    """Collate function for items of `Guarded`: returns a batch and the report on its reading.

    Args:
        collate: collate function of the samples.
    """

    def __init__(self, collate: Callable[[Sequence[Sample]], dict]):
        self._collate = collate

    def __call__(self, items: Sequence[tuple[Sample, Reading]]) -> tuple[dict, Reading]:
        samples, readings = zip(*items, strict=True)
        return self._collate(samples), Reading.merge(readings)
